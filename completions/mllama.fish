# mllama completion fish > ~/.config/fish/completions/mllama.fish
complete --command mllama --no-files --arguments "(env _MLLAMA_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS=(commandline -cp) mllama 2>/dev/null)" --condition "env _MLLAMA_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=is-args _TYPER_COMPLETE_ARGS=(commandline -cp) mllama 2>/dev/null"
