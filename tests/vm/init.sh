#!/bin/busybox sh
# shellcheck shell=dash
# The initrd's /init: the host's root, read-only over 9p, under a tmpfs overlay; the cgroup layout asked for; then /run/command.
# The kernel's command line gives nsagent.layout=v2|v1|hybrid; an empty /dev/vda becomes an ext4 at /run/disk.
set -u
export PATH=/bin:/usr/sbin:/sbin
fail() { echo "init: $*"; poweroff -f; }

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for pass in 1 2; do # which of two needs the other differs by kernel
	while read -r module; do
		[ -d "/sys/module/$module" ] || insmod "/modules/$module.ko" 2>/dev/null ||
			[ "$pass" = 1 ] || echo "init: module $module is refused"
	done </modules/order
done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose root /lower || fail "no host root"
mount -t tmpfs tmpfs /upper
mkdir -p /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /new || fail "no overlay"
for directory in proc sys dev; do mount --move "/$directory" "/new/$directory"; done

mount -t tmpfs tmpfs /new/run
mkdir -p /new/run/out /new/dev/pts /new/dev/shm /new/run/disk
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=none out /new/run/out || fail "no output directory"
mount -t devpts devpts /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t bpf bpf /new/sys/fs/bpf
mount -t tracefs tracefs /new/sys/kernel/tracing
mount -t debugfs debugfs /new/sys/kernel/debug
ip link set lo up

line=$(cat /new/proc/cmdline)
case $line in *nsagent.init=systemd*)
	# All of the above but the root and /run is systemd's own work. It stays away from what is mounted on /run.
	for directory in dev/pts dev/shm sys/fs/bpf sys/kernel/tracing sys/kernel/debug; do umount "/new/$directory"; done
	rm -f /new/.dockerenv # else systemd takes this for a container, and leaves half of its work
	cp /bin/busybox /command /new/run/
	cat >/new/etc/systemd/system/command.service <<-'UNIT'
		[Unit]
		After=basic.target
		Requires=basic.target
		[Service]
		Type=oneshot
		ExecStart=/bin/sh -c '/bin/sh /run/command >/run/out/log 2>&1; echo $? >/run/out/status; /run/busybox sync; /run/busybox poweroff -f'
	UNIT
	exec switch_root /new /lib/systemd/systemd --unit=command.service
	;;
esac
layout=${line#*nsagent.layout=} layout=${layout%% *}
top=/new/sys/fs/cgroup
case $layout in
v2)
	mount -t cgroup2 cgroup2 $top
	# one by one: a controller this kernel lacks fails the whole write
	for controller in cpu cpuset io memory pids; do echo "+$controller" >$top/cgroup.subtree_control; done
	;;
v1 | hybrid)
	mount -t tmpfs -o mode=755 tmpfs $top
	for controller in cpu cpuacct cpuset memory devices freezer blkio pids; do
		mkdir $top/$controller
		mount -t cgroup -o $controller cgroup $top/$controller || rmdir $top/$controller
	done
	[ "$layout" = v1 ] || { mkdir $top/unified && mount -t cgroup2 cgroup2 $top/unified; }
	;;
esac 2>/dev/null
if [ -b /new/dev/vda ]; then
	chroot /new mkfs.ext4 -q /dev/vda && mount -t ext4 /new/dev/vda /new/run/disk || echo "init: no disk"
fi

cp /bin/busybox /new/run/busybox
cp /command /new/run/command
cat >/new/run/first <<'FIRST'
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
cd /
/bin/sh /run/command >/run/out/log 2>&1 </dev/null
echo $? >/run/out/status
/run/busybox sync
/run/busybox poweroff -f
FIRST
chmod +x /new/run/first
exec switch_root /new /run/first
