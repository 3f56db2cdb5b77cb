# Sourced by boot and kernel-nbd: runs one virtual machine and judges it by what
# its console says.
# shellcheck shell=bash

machine_work=$(mktemp -d)
machine_pid=
machine_end() {
  if [[ $machine_pid ]]; then kill -KILL "$machine_pid" 2>/dev/null || true; fi
  rm -rf "$machine_work"
}
trap machine_end EXIT
trap 'exit 1' INT TERM

# machine LIMIT QEMU_ARG…: the console goes to stdout, its input comes from the
# FIFO $STOP if that is set. Ends the machine after LIMIT seconds. Does not
# return: the exit status is 0 exactly when the guest said OK.
machine() {
  local limit=$1 waited status=0 stop=${STOP:-$machine_work/stop}
  shift
  [[ -p $stop ]] || mkfifo "$stop"
  # Open for reading and writing, so that QEMU neither waits for a writer nor sees an end.
  exec 3<>"$stop"
  : >"$machine_work/console"
  # Software emulation: the tests must run where no KVM is to be had.
  qemu-system-x86_64 -accel tcg -machine pc -m 256 -no-reboot -nodefaults -display none "$@" \
    -chardev stdio,id=console,signal=off -serial chardev:console \
    <&3 > >(sed -u 's/\r//g; s/\x1b\[[0-9;?]*[A-Za-z]//g; s/\x1bc//g' | tee "$machine_work/console") &
  machine_pid=$!

  for (( waited = 0; waited < limit * 5; waited++ )); do
    kill -0 "$machine_pid" 2>/dev/null || break
    sleep 0.2
  done
  if kill -0 "$machine_pid" 2>/dev/null; then
    echo "guest: FAILED still running after $limit s"
    exit 1
  fi
  wait "$machine_pid" || status=$?
  machine_pid=
  sleep 0.2 # the rest of the console's pipe
  grep -q '^guest: OK' "$machine_work/console" && exit 0
  grep -q '^guest: FAILED' "$machine_work/console" ||
    echo "guest: FAILED it ended without a verdict (QEMU's status $status)"
  exit 1
}
