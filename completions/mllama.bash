# In ~/.bashrc:  source <(mllama completion bash)
_mllama_completion() {
    local IFS=$'
'
    COMPREPLY=( $( env COMP_WORDS="${COMP_WORDS[*]}" \
                   COMP_CWORD=$COMP_CWORD \
                   _MLLAMA_COMPLETE=complete_bash $1 2>/dev/null ) )
    return 0
}

complete -o default -F _mllama_completion mllama
