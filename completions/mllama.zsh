#compdef mllama
# In ~/.zshrc, after compinit:  source <(mllama completion zsh)

_mllama_completion() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _MLLAMA_COMPLETE=complete_zsh mllama 2>/dev/null)
}

compdef _mllama_completion mllama
