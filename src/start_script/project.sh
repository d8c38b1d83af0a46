#!/bin/sh
#@ head
set -eu
umask 022

logs=/var/log/project
# Of one process, by ways_of; of one job, by job_ways_of.
stop_signal='' stop_within='' ready_within='' reload='' when='' creates=''
#@ settings
usage() {
	printf '%s\n' \
		'usage: project start|stop|restart|reload|check|ready|status [PROCESS]' \
		'       project run [PROCESS] [-- ARGUMENTS]' \
		'       project job NAME' \
		'' \
		'run stays in the foreground; start does not, and logs below /var/log/project.' \
		"processes: ${processes:-none}" \
		"jobs: ${jobs:-none}"
}

misused() {
	printf 'project: %s\n' "$*" >&2
	usage >&2
	exit 2
}

say() {
	printf 'project: %s\n' "$*"
}

fail() {
	printf 'project: %s\n' "$*" >&2
	exit 1
}

among() {
	case $1 in
	'' | *' '*) return 1 ;;
	esac
	case " $2 " in
	*" $1 "*) ;;
	*) return 1 ;;
	esac
}

# Makes a directory of the user's, if it is not there.
own_directory() {
	[ -d "$1" ] || { mkdir -p "$1" && chown "$uid:$gid" "$1"; }
}

# Root makes what only root can make and becomes the user before anything that user may
# have written is read. The process stays the same one: its pid is the server's later.
become_user() {
	uid=$(id -u "$user") || fail "there is no user $user here"
	gid=$(id -g "$user")
	own=$(id -u)
	[ "$own" != "$uid" ] || return 0
	[ "$own" = 0 ] || fail "only root and $user can do that"
	own_directory "$run"
	# What does not write there leaves the tree as it is.
	case $1 in
	start | restart | reload) own_directory "$logs" ;;
	esac
	exec setpriv --reuid="$uid" --regid="$gid" --init-groups --no-new-privs -- "$0" "$@"
}

# Whether a process runs here, and its pid in $pid. While another is started beside it, it is
# that one, as long as that one runs.
running() {
	lives_by "$run/$1.pid" || lives_by "$run/$1.pid.before"
}

# Whether the process a pid file names lives, and its pid in $pid.
lives_by() {
	[ -r "$1" ] || return 1
	read -r pid begun <"$1" || return 1
	lives "$pid" && { [ -z "$begun" ] || [ "$begun" = "$(begun_at "$pid")" ]; }
}

# Writes down which process ran before another that is started beside it. Nobody removes that
# when it has ended, so its time is there too.
remember() {
	printf '%s %s\n' "$2" "$(begun_at "$2")" >"$run/$1.pid.before"
}

# When a process was started, in clock ticks after boot (proc(5)); nothing without /proc.
begun_at() {
	if ! [ -r "/proc/$1/stat" ] || ! read -r stat <"/proc/$1/stat"; then
		return 0
	fi
	# What comes before is its name, which may have spaces.
	# shellcheck disable=SC2086
	set -- ${stat##*) }
	printf '%s' "${20}"
}

# A pid file outlives its process, and the number may be another program's by now: one that
# cannot be signalled, or, as far as /proc is there to tell, one that does not live in this
# tree. A zombie lives nowhere. (2>&- and not 2>/dev/null: there may be no /dev.)
lives() {
	case $1 in
	'' | *[!0-9]*) return 1 ;;
	esac
	kill -s 0 "$1" 2>&- || return 1
	[ ! -d "/proc/$1" ] || [ "/proc/$1/root" -ef / ]
}

run_process() {
	process=$1
	shift
	if running "$process" && [ "$pid" != $$ ]; then
		ways_of "$process"
		[ "$reload" = replace ] || fail "$process is already running, pid $pid"
		remember "$process" "$pid"
	fi
	printf '%s\n' $$ >"$run/$process.pid.new"
	mv -f "$run/$process.pid.new" "$run/$process.pid"
	exec_process "$process" "$@"
}

start_process() {
	if running "$1"; then
		say "$1 is already running, pid $pid"
		return 0
	fi
	begin_process "$1"
}

begin_process() {
	rm -f "$run/$1.pid"
	setsid --fork "$0" run "$1" </dev/null >>"$logs/$1.log" 2>&1
	# Ten seconds to appear, then one in which it must not go away again.
	tries=100
	until lives_by "$run/$1.pid"; do
		tries=$((tries - 1))
		if [ "$tries" -eq 0 ] || [ -e "$run/$1.pid" ]; then
			lives_by "$run/$1.pid" || not_started "$1"
		fi
		sleep 0.1
	done
	tries=10
	while [ "$tries" -gt 0 ]; do
		sleep 0.1
		lives_by "$run/$1.pid" || not_started "$1"
		tries=$((tries - 1))
	done
	say "$1 runs, pid $pid"
}

not_started() {
	tail -n 20 "$logs/$1.log" >&2
	fail "$1 did not start; see $logs/$1.log"
}

# Waits until a process, by pid, is gone: at most so many seconds.
gone_within() {
	tries=$(($2 * 10))
	while lives "$1"; do
		[ "$tries" -gt 0 ] || return 1
		tries=$((tries - 1))
		sleep 0.1
	done
}

stop_process() {
	if ! running "$1"; then
		say "$1 is not running"
		rm -f "$run/$1.pid" "$run/$1.pid.before"
		return 0
	fi
	for file in "$run/$1.pid.before" "$run/$1.pid"; do
		! lives_by "$file" || end_process "$1" "$pid"
	done
	# A supervisor may have started another by now.
	running "$1" || rm -f "$run/$1.pid" "$run/$1.pid.before"
	say "$1 stopped"
}

end_process() {
	ways_of "$1"
	kill -s "$stop_signal" "$2" 2>&- || :
	if ! gone_within "$2" "$stop_within"; then
		say "$1 did not end within $stop_within s of SIG$stop_signal; killing it"
		# The children too, where it leads a group of its own.
		kill -s KILL -- "-$2" 2>&- || kill -s KILL "$2" 2>&- || :
		gone_within "$2" 10 || fail "$1 cannot be killed, pid $2"
	fi
}

# Starts another of a process and ends the one that ran when the other is ready.
replace_process() {
	settle_process "$1"
	running "$1" || fail "$1 is not running"
	old=$pid
	remember "$1" "$old"
	begin_process "$1"
	new=$pid tries=$((ready_within * 2))
	until "$0" ready "$1" "$new"; do
		tries=$((tries - 1))
		if [ "$tries" -le 0 ] || ! lives "$new"; then
			! lives "$new" || end_process "$1" "$new"
			fail "$1 was left as it is, pid $old: the new one is not ready; see $logs/$1.log"
		fi
		sleep 0.5
	done
	lives "$new" || fail "$1 was left as it is, pid $old: the new one ended; see $logs/$1.log"
	end_process "$1" "$old"
	rm -f "$run/$1.pid.before"
}

# Ends one of the two that a replacement which was cut short has left.
settle_process() {
	lives_by "$run/$1.pid.before" || return 0
	older=$pid
	if ! lives_by "$run/$1.pid" || [ "$pid" = "$older" ]; then
		return 0
	fi
	if "$0" ready "$1" "$pid"; then
		end_process "$1" "$older"
	else
		end_process "$1" "$pid"
	fi
}

reload_process() {
	running "$1" || fail "$1 is not running"
	"$0" check "$1" || fail "$1 is left as it is: its check failed"
	ways_of "$1"
	case $reload in
	restart | rolling)
		"$0" drain "$1" || {
			"$0" admit "$1" || :
			fail "$1 is left as it is: it cannot be drained"
		}
		stop_process "$1"
		start_process "$1"
		admit_process "$1"
		;;
	replace)
		replace_process "$1"
		;;
	command)
		reload_by_command "$1"
		;;
	*)
		kill -s "$reload" "$pid"
		say "$1 was sent SIG$reload, pid $pid"
		;;
	esac
}

action=${1-}
case $action in
start | stop | restart | reload | reload-command | drain | admit | check | ready | status | run | job) ;;
help | -h | --help)
	usage
	exit 0
	;;
'') misused "what shall be done?" ;;
*) misused "there is no action '$action'" ;;
esac

if [ "$action" = job ]; then
	[ $# -eq 2 ] || misused "which job?"
	among "$2" "$jobs" || misused "there is no job '$2'"
	job_ways_of "$2"
	if [ "$when" = start ]; then
		become_user "$@"
	fi
	if [ -n "$creates" ] && [ -e "$creates" ]; then
		say "$2 is done already: $creates exists"
		exit 0
	fi
	surroundings
	run_job "$2"
	exit
fi

chosen=$processes
case ${2-} in
'' | --) ;;
*)
	among "$2" "$processes" || misused "there is no process '$2'"
	chosen=$2
	;;
esac
if [ "$action" != run ]; then
	# A pid comes with ready where there are two of a process.
	most=2
	[ "$action" != ready ] || most=3
	if [ $# -gt "$most" ] || [ "${2-}" = -- ]; then
		misused "$action takes a PROCESS and nothing else"
	fi
	case ${3-} in
	*[!0-9]*) misused "'$3' is not a pid" ;;
	esac
	become_user "$@"
	surroundings
fi

case $action in
run)
	case $chosen in
	'') misused 'there is no process to run' ;;
	*' '*) misused 'run needs a PROCESS' ;;
	esac
	case ${2-}:${3-} in
	: | *:-- | --:*) ;;
	*) [ $# -eq 2 ] || misused "write -- before the arguments of $chosen" ;;
	esac
	become_user "$@"
	shift
	[ "${1-}" != "$chosen" ] || shift
	[ "${1-}" != -- ] || shift
	surroundings
	run_process "$chosen" "$@"
	;;
start)
	stopped=
	for process in $chosen; do
		running "$process" || stopped=yes
	done
	if [ -n "$stopped" ]; then
		for job in $start_jobs; do
			"$0" job "$job" || fail "the job $job failed; nothing was started"
		done
	fi
	for process in $chosen; do
		start_process "$process"
	done
	;;
stop)
	reversed=
	for process in $chosen; do
		reversed="$process $reversed"
	done
	for process in $reversed; do
		stop_process "$process"
	done
	;;
restart)
	for process in $chosen; do
		stop_process "$process"
		start_process "$process"
	done
	;;
reload)
	for process in $chosen; do
		reload_process "$process"
	done
	;;
reload-command)
	for process in $chosen; do
		reload_by_command "$process"
	done
	;;
drain | admit | check | ready)
	for process in $chosen; do
		# For a command that asks this very process.
		if [ -n "${3-}" ]; then
			pid=$3
		else
			running "$process" || pid=
		fi
		"${action}_process" "$process"
	done
	;;
status)
	# 3: "program is not running" (LSB 5.0, chapter 22).
	status=0
	for process in $chosen; do
		if running "$process"; then
			printf '%s: running, pid %s, %s\n' "$process" "$pid" "$(listen_of "$process")"
		else
			printf '%s: not running\n' "$process"
			status=3
		fi
	done
	exit "$status"
	;;
esac
