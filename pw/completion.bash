# bash, or zsh after `autoload -U bashcompinit; bashcompinit`:  source <(pw completion)
_pw() {
  local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}" word
  word="${line##* }"
  COMPREPLY=($(pw complete "$line"))
  [[ $word == *=* ]] && COMPREPLY=("${COMPREPLY[@]#*=}")
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} != *= ]] || compopt -o nospace 2>/dev/null
}
complete -F _pw pw
