#!/bin/bash
# What `make setup` does, on Debian 12 and 13: the Debian packages, .venv, bpffs and tracefs. Each step is skipped where
# it is done already, so that a second run takes a second. Usage: tools/setup.sh [package...] (more Debian packages).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Debian's own interpreter, not one that comes first on PATH: python3-bpfcc is for this one.
python=/usr/bin/python3
packages=(
	python3-venv   # .venv
	python3-bpfcc  # compiles bpf/*.c; PyPI's bcc is an unrelated library
	libseccomp2    # the filter of nsagent run
	gcc libc6-dev  # the C workloads of the tests
	shellcheck     # a linter of the tests
	util-linux     # unshare and nsenter, which the tests compare with
	iproute2       # ip: network namespaces in the tests
	uidmap         # newuidmap: the ids of an ordinary user's jobs
	time           # GNU time, which reports are compared with
	procps         # ps, in the documentation's examples
	"$@"
)

say() { printf 'setup: %s\n' "$*"; }
die() {
	printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
	exit 1
}

missing_packages() {
	local package
	for package in "${packages[@]}"; do
		dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || printf '%s\n' "$package"
	done
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null; }

install_packages() {
	local missing
	command -v dpkg-query >/dev/null || die "this is not Debian: there is no dpkg" \
		"install what tools/setup.sh lists with your own package manager, then make .venv as CONTRIBUTING.md says"
	mapfile -t missing < <(missing_packages)
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "these Debian packages are missing: ${missing[*]}" \
		"run 'make setup' as root, or: apt-get install --no-install-recommends ${missing[*]}"
	say "installing Debian packages: ${missing[*]}"
	# The lists a machine was delivered with are often absent or too old to install from.
	apt install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 && return 0
	say "updating the package lists"
	# One source that does not answer, often a third party's, is no reason to stop: the others may have all of it.
	apt update || say "apt-get update complained; trying all the same"
	apt install -y --no-install-recommends "${missing[@]}" >/dev/null ||
		die "apt-get could not install ${missing[*]}" "see its messages above; check the network and /etc/apt/sources.list*. Debian 12 and 13 have all of them"
}

make_venv() {
	local stamp
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		die "$python is older than Python 3.11" "use Debian 12 or later"
	stamp=$({ cat pyproject.toml; pwd; "$python" -V; } | sha256sum)
	[ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ] || return 0
	if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
		say "making .venv with $python"
		"$python" -m venv --clear .venv || die "python3 -m venv failed" "apt-get install python3-venv"
	fi
	say "installing nsagent and its development tools into .venv"
	.venv/bin/python -m pip install -q --disable-pip-version-check --editable '.[dev]' ||
		die "pip could not install the Python packages" "check the network and pip's configuration: pip config debug"
	printf '%s\n' "$stamp" >.venv/stamp
}

# mount_once TYPE DIRECTORY CONSEQUENCE. A second bpffs over the first would hide its pins: mount only where there is none.
mount_once() {
	if [ "$(stat -f -c %T "$2" 2>/dev/null)" = "${1/#bpf/bpf_fs}" ]; then
		return 0
	elif [ ! -d "$2" ]; then
		say "no $2: this kernel has no $1; $3"
	elif [ "$(id -u)" != 0 ]; then
		say "$1 is not mounted on $2, and only root can; $3"
	elif mount -t "$1" -o nosuid,nodev,noexec "$1" "$2"; then
		say "mounted $1 on $2"
	else
		say "could not mount $1 on $2; $3"
	fi
}

install_packages
make_venv
mount_once bpf /sys/fs/bpf "no namespace accounting, and its tests are skipped"
mount_once tracefs /sys/kernel/tracing "tracing falls back, and its tests are skipped"
say "ready"
