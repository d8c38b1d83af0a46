# shellcheck shell=bash
# What the kernel's command line tells tests and shells of the machine, and the program as an
# administrator would have it: what runs at boot finds it before the share is there.
parameter() { sed -n "s/.*\<vm\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

export SHARE=/run/share VM_ENGINE VM_SLOWNESS VM_ROUNDS DISK1 DISK2 DISK3 DISK4
VM_ENGINE=$(parameter engine)
VM_SLOWNESS=$(parameter slowness)
VM_ROUNDS=$(parameter rounds)
IFS=, read -r DISK1 DISK2 DISK3 DISK4 <<<"$(parameter disks),,,"

if ! cmp --silent "$SHARE/bin/farmctl" /usr/local/bin/farmctl; then
    install -m 755 "$SHARE/bin/farmctl" /usr/local/bin/farmctl
fi
