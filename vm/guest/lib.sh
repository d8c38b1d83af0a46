# shellcheck shell=bash
# The words of tests: sourced before each, in the guest. vm/README.md lists them.
unset BASH_ENV
set -E
trap 'echo "failed: line $LINENO of ${BASH_SOURCE[0]##*/}: $BASH_COMMAND" >&2' ERR

# step WORDS...: says what comes next.
step() { printf '== %s\n' "$*"; }

# tell WORDS...: what is shown when the test passes, too, if it is said in its last boot.
tell() { printf 'told: %s\n' "$*"; }

# fail WORDS...: ends the test.
fail() {
    printf 'failed: %s (line %s)\n' "$*" "${BASH_LINENO[0]}" >&2
    trap - ERR
    exit 1
}

# reboot_guest NEXT: shuts down, boots the same disks, runs the test again with NEXT as $1.
reboot_guest() { next_boot reboot "$1"; }

# cut_power NEXT: the same, but the guest is killed where it stands. What must survive
# has to be on its way to the disk: fsync(2) or sync(1) it first.
cut_power() { next_boot cut "$1"; }

next_boot() {
    printf '%s:%s\n' "$1" "$2" >/run/vm/next
    exit 0
}

# wait_until SECONDS COMMAND...: looks until the command succeeds; at most so long, times
# what the engine is slower than a processor.
wait_until() {
    local deadline=$((SECONDS + $1 * VM_SLOWNESS))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || fail "in vain: $*"
        # A pause between two looks.
        read -rt 0.1 <> <(:) || true
    done
}

# assert_equal WHAT EXPECTED FOUND
assert_equal() {
    [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"
}

# assert_contains TEXT WORDS
assert_contains() {
    [[ $1 == *"$2"* ]] || fail "'$2' is not in: $1"
}

# assert_status STATUS COMMAND...: the command ends so; its output, both kinds, is in $output.
# shellcheck disable=SC2034 # for the test
assert_status() {
    local wanted=$1 status=0
    shift
    output=$("$@" 2>&1) || status=$?
    printf '%s\n' "$output"
    [ "$status" -eq "$wanted" ] || fail "exit status $status, not $wanted: $*"
}

# served URL: the page, which must come.
served() { curl --silent --show-error --fail --max-time $((10 * VM_SLOWNESS)) "$1"; }

# load_begin URL SECONDS [PAUSE]: requests from 8 connections, in the background, PAUSE
# milliseconds (20) after the answer before: with 0 they take all of a processor that what is
# tested needs, too. With wrk an answer that takes longer than its timeout is an error, though
# it came.
load_begin() {
    wrk --threads 1 --connections 8 --duration "$2" --timeout 30 \
        --script "$SHARE/guest/load.lua" "$1" -- "${3:-20}" >/run/vm/load &
    load=$!
}

# load_end: waits for the end of the load, of which no request may have failed. How many there
# were is in $requests; how long half of them took at most, in microseconds, in $half, and 99 of
# 100 in $most.
# shellcheck disable=SC2034 # for the test
load_end() {
    wait "$load" || fail "wrk: $(cat /run/vm/load)"
    local errors
    read -r requests errors half most \
        < <(sed -n 's/^requests \(.*\) errors \(.*\) half \(.*\) most \(.*\)/\1 \2 \3 \4/p' /run/vm/load)
    step "load: $requests requests, $errors errors; p50 $half µs, p99 $most µs"
    [ "$requests" -ge 20 ] || fail "only $requests requests"
    assert_equal 'failed requests' 0 "$errors"
}

# load_stop: the same, but ends the load at once: with SIGINT wrk tells what it has.
load_stop() {
    kill -INT "$load" || fail 'the load was over before'
    load_end
}

# session_of APPLICATION: name of its schroot session.
session_of() { farmctl status "$1" --json | sed -n 's/.*"name": *"\(fs-[^"]*\)".*/\1/p'; }

# unit_of APPLICATION PROCESS: its service in the session that runs; of a process that is
# replaced, the first of both.
unit_of() { basename "$(echo "/etc/systemd/system/farmctl-$1.$2@"????????.service)"; }

# in_session APPLICATION COMMAND...: runs it as root in the application's session.
in_session() {
    local session
    session=$(session_of "$1")
    shift
    schroot --run-session --chroot "session:$session" --directory / --user root -- "$@"
}

# machine: what a test may not change for good, a line each. Names, not numbers: they are
# compared across boots.
machine() {
    awk '{ print "mount", $5 }' /proc/self/mountinfo
    (
        shopt -s nullglob
        for entry in /var/lib/schroot/session/* /etc/schroot/chroot.d/* /etc/nginx/sites-enabled/* \
            /etc/systemd/system/*; do
            echo "file $entry"
        done
    )
    grep '^farmctl-' /etc/passwd | sed 's/^/account /' || true
    local loop pid words
    for loop in /sys/block/loop*/loop/backing_file; do
        [ ! -e "$loop" ] || echo "loop $(<"$loop")"
    done
    if command -v lvs >/dev/null; then
        dmsetup ls 2>/dev/null | sed -n 's/^\(\S*\)\s*(.*/mapped \1/p'
        lvs --noheadings -o vg_name,lv_name 2>/dev/null | sed 's/^ */volume /'
    fi
    # Processes that live in a session, and those of the kinds farmctl starts.
    find /proc/[0-9]*/root -maxdepth 0 -not -lname / -printf 'process in %l\n' 2>/dev/null || true
    for pid in /proc/[0-9]*; do
        mapfile -d '' -t words <"$pid/cmdline" || continue
        case ${words[*]} in
        *gunicorn* | *supervisord*farmctl* | *debootstrap*) echo "process ${words[*]}" ;;
        esac
    done 2>/dev/null
}

# snapshot_machine: remembers it.
snapshot_machine() {
    machine | sort -u >/var/lib/vm-machine
    sync /var/lib/vm-machine
}

# compare_machine: it must be as it was, and nothing left for gc.
compare_machine() {
    farmctl gc --check
    machine | sort -u | diff /var/lib/vm-machine - || fail 'the machine is not as it was'
}
