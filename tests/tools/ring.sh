# Sourced by the scripts that run a ring of sheep on loopback: starting, killing,
# waiting with a limit, ending by pid. The caller sets
#   bin    directory of the programs `sheep` and `dog`
#   work   directory for the sheep's own directories and output
# and calls ring_ports first and ring_end last.
# Sheep are numbered from 1. Their stdout is $work/N.out, their log $work/N.log.
# shellcheck shell=bash disable=SC2154

declare -A ring_pid=()
ring_base=

ring_ports() { # COUNT: finds room for COUNT sheep below the range the kernel hands out
  local count=$(($1 * 4)) base port busy tries
  busy=" $(ss -Htnl | awk '{ sub(/.*:/, "", $4); printf "%s ", $4 }')"
  for (( tries = 0; tries < 100; tries++ )); do
    base=$((20000 + RANDOM % 3000 * 4))
    for (( port = base; port < base + count; port++ )); do
      [[ $busy != *" $port "* ]] || continue 2
    done
    ring_base=$base
    return
  done
  echo 'no free ports' >&2
  return 1
}

admin_port() { echo $((ring_base + $1 * 4 - 4)); } # the mesh listens on the next one
nbd_port() { echo $((ring_base + $1 * 4 - 2)); }
seeds() { # COUNT: the options that name the first COUNT sheep as seeds
  local n
  for (( n = 1; n <= $1; n++ )); do printf -- '--seed 127.0.0.1:%s ' "$(admin_port "$n")"; done
}
uri() { echo "nbd://127.0.0.1:$(nbd_port "$1")/$2"; } # N VDI

sheep_start() { # N [OPTION…]: returns once it has said that it serves
  local n=$1; shift
  : >"$work/$n.out"
  "$bin/sheep" -p "$(admin_port "$n")" --nbd --nbd-port "$(nbd_port "$n")" "$@" \
    "$work/sheep$n" >>"$work/$n.out" 2>>"$work/$n.log" &
  ring_pid[$n]=$!
  until_true 20 sheep_serves "$n" || {
    echo "sheep $n does not serve; the end of its log:" >&2
    tail -n 5 "$work/$n.log" >&2
    return 1
  }
}

sheep_serves() { [[ -s $work/$1.out ]] && kill -0 "${ring_pid[$1]}" 2>/dev/null; }

sheep_kill() { # N [SIGNAL]: and waits for its end
  kill "-${2:-KILL}" "${ring_pid[$1]}" 2>/dev/null || true
  wait "${ring_pid[$1]}" 2>/dev/null || true
  unset "ring_pid[$1]"
}

dog_at() { # N VERB…
  local n=$1; shift
  timeout 30 "$bin/dog" -a 127.0.0.1 -p "$(admin_port "$n")" "$@"
}

dog() { # VERB…, asked at the first sheep that is running
  local n
  for n in 1 2 3; do
    [[ ${ring_pid[$n]:-} ]] || continue
    dog_at "$n" "$@"
    return
  done
  return 3
}

full_redundancy() { dog cluster check >"$work/check" 2>&1; }
not_full_redundancy() { ! full_redundancy; }

until_true() { # SECONDS COMMAND…: tries it every 0.1 s
  local end=$((SECONDS + $1)); shift
  until "$@"; do
    (( SECONDS < end )) || return 1
    sleep 0.1
  done
}

ring_end() {
  local n pid
  for n in "${!ring_pid[@]}"; do kill -TERM "${ring_pid[$n]}" 2>/dev/null || true; done
  for n in "${!ring_pid[@]}"; do
    pid=${ring_pid[$n]}
    until_true 5 process_gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  ring_pid=()
}

process_gone() { # a zombie is gone too: wait gets it
  local state
  state=$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) || return 0
  [[ $state == Z ]]
}
