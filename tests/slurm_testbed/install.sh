#!/bin/sh
# The system packages that tests need, where they are missing: Slurm and munge for a Slurm of several nodes on this
# machine, iproute2 for nodes with a network of their own, sshd and rsync for nodes that are reached by ssh. Some 20 s.
# Nothing is started: invoke-rc.d asks policy-rc.d first, and while the packages are being installed it says no.
set -eu

commands="slurmctld:slurmctld slurmd:slurmd srun:slurm-client munged:munge ip:iproute2 sshd:openssh-server rsync:rsync"
PATH="$PATH:/usr/sbin:/sbin"
packages=""
for pair in $commands; do
    command -v "${pair%%:*}" >/dev/null || packages="$packages ${pair#*:}"
done
[ -n "$packages" ] || exit 0

fail() {
    echo "luban: tests need the system packages$packages; $1" >&2
    exit 1
}
command -v apt-get >/dev/null || fail "there is no apt-get here: install what provides them, then call again"
[ "$(id -u)" = 0 ] || fail "install them by: sudo $0"

policy=/usr/sbin/policy-rc.d
kept=$(mktemp -d)
restore() {
    rm -f "$policy"
    [ ! -e "$kept/policy-rc.d" ] || cp -p "$kept/policy-rc.d" "$policy"
    rm -rf "$kept"
}
trap restore EXIT
trap 'exit 1' INT TERM HUP
[ ! -e "$policy" ] || cp -p "$policy" "$kept"
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

echo "installing$packages; no daemon of theirs is started" >&2
export DEBIAN_FRONTEND=noninteractive
{
    apt-get update -q &&
        # shellcheck disable=SC2086  # a list of words
        apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 $packages
} >"$kept/log" 2>&1 </dev/null || {
    tail -n 20 "$kept/log" >&2
    fail "apt-get could not install them, its last words are above"
}
