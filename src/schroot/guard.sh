#!/bin/sh
# Written by farmctl, removed with its last chroot on LVM; changes are lost.
#
# schroot gives a session's snapshot the session's name and removes the logical volume of
# that name at the end, whatever it is: a session that is called like a volume makes it
# remove the volume. Here such a session is refused, at its begin and at its end, if the
# volume or the chroot is farmctl's. Everybody else's are none of our business.
set -eu

[ "${CHROOT_TYPE-}" = lvm-snapshot ] || exit 0
stage=${1-}
# Each of the two guards one stage: between them, a snapshot of that name is as it should be.
case $(basename "$0").$stage in 04*.setup-start | 99*.setup-stop) ;; *) exit 0 ;; esac

export LVM_SUPPRESS_FD_WARNINGS=1
device=$CHROOT_DEVICE
volume=$(basename "$(dirname "$device")")/$CHROOT_LVM_SNAPSHOT_NAME
# Nothing of that name: as it should be at the begin, and harmless at the end.
found=$(lvs --noheadings --separator : --options origin,lv_tags "$volume" 2>/dev/null) || exit 0
case $found in
*farmctl.node=*) ;;
*) [ -n "${FARMCTL_NODE-}" ] || exit 0 ;;
esac

if [ "$stage" = setup-start ]; then
    echo "there is a volume $volume already: the end of this session would remove it" >&2
    exit 1
fi
origin=$(echo "${found%%:*}" | tr -d ' ')
if [ "$origin" != "$(basename "$device")" ]; then
    echo "$volume is not a snapshot of $device: it is not removed" >&2
    echo "remove /var/lib/schroot/session/$CHROOT_LVM_SNAPSHOT_NAME by hand" >&2
    exit 1
fi
