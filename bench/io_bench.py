"""Disk and network sections of bench/run: disk_load and iperf3 on the host and in guests under QEMU's TCG and ring3, in one go."""
import math
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODULES = 'virtio_pci,virtio_blk,virtio_net'
DISK_BYTES = 256 << 20
ROUNDS = 5
# read or write, order, bytes of a request, requests in flight
LOADS = [(rw, *rest) for rw in ('read', 'write')
         for rest in (('seq', 1 << 20, 1), ('seq', 1 << 17, 4), ('seq', 4096, 1), ('seq', 4096, 32), ('rand', 4096, 1), ('rand', 4096, 32))]
DISK_LINE = re.compile(r'^DISK (\S+) (\S+) (\d+) (\d+) (\d+) (\d+)', re.MULTILINE)
PORT = 5201

SCRIPT = r'''
for word in $(cat /proc/cmdline); do
	case $word in
	io.disk=*) loads=${word#*=} ;;
	io.rounds=*) rounds=${word#*=} ;;
	io.address=*) address=${word#*=} ;;
	io.peer=*) peer=${word#*=} ;;
	io.time=*) seconds=${word#*=} ;;
	io.serve) serve=1 ;;
	esac
done
# Each round when it is asked for.
for round in $(seq ${rounds:-0}); do
	echo @@READY$round@@
	read line </dev/console
	for load in $(echo $loads | tr '+' ' '); do disk_load /dev/vda $(echo $load | tr ',' ' '); done
done
if [ "$address" ]; then
	ip link set lo up; ip link set eth0 up; ip addr add $address/24 dev eth0
	sleep 1
fi
[ -z "$serve" ] || { echo @@SERVES@@; iperf3 -s >/dev/null; }
if [ "$peer" ]; then
	ping -c 1 $peer >/dev/null
	echo "FIRST $(ping -c 20 -i 0.1 $peer | grep round-trip)"
	ping -c 120 -i 0.02 $peer >/dev/null
	echo "PING $(ping -c 40 -i 0.05 $peer | grep round-trip)"
	echo "TO $(iperf3 -c $peer -t $seconds -f m | grep receiver)"
	echo "FROM $(iperf3 -c $peer -t $seconds -f m -R | grep receiver)"
fi
echo @@DONE@@
'''


class Failed(Exception):
    pass


def build(folder):
    path = folder + '/disk_load'
    subprocess.run([os.environ.get('CC', 'gcc'), '-O2', '-std=gnu17', '-D_GNU_SOURCE', '-static', '-o', path,
                    ROOT + '/bench/disk_load.c'], check=True)
    return path


def guest_files(folder, disk_load, with_iperf):
    fetched = subprocess.run([ROOT + '/tools/fetch-guest', 'cloud', 'cloud-modules', 'busybox'],
                             stdout=subprocess.PIPE, text=True, check=True)
    kernel, modules, busybox = fetched.stdout.split('\n')[:3]
    with open(folder + '/io-script', 'w', encoding='ascii') as file:
        file.write(SCRIPT)
    initramfs = folder + '/io.cpio'
    command = [ROOT + '/tools/make-initramfs', '-o', initramfs, '--busybox', busybox, '--script', folder + '/io-script',
               '--modules', modules + ':' + MODULES, '--add', disk_load + ':/bin/disk_load']
    if with_iperf:
        command += ['--program', shutil.which('iperf3')]
    subprocess.run(command, check=True)
    return kernel, initramfs


class Guest:
    def __init__(self, machine, boot, append, devices):
        """`devices`: {'tcg': [...], 'ring3': [...]} arguments."""
        append = 'console=ttyS0 quiet panic=-1 ' + append
        if machine['tcg']:
            command = ['qemu-system-x86_64', '-accel', 'tcg', '-cpu', 'max', '-m', '512', '-nodefaults', '-display', 'none',
                       '-no-reboot', '-serial', 'stdio', '-kernel', boot[0], '-initrd', boot[1], '-append', append,
                       *devices['tcg']]
        else:
            command = [machine['vmm'], 'run', '--engine', machine['engine'], '--memory', '512M', '--no-reboot',
                       '--kernel', boot[0], '--initrd', boot[1], '--append', append, *devices['ring3']]
        self.output = ''
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.set_blocking(self.process.stdout.fileno(), False)

    def until(self, marker, seconds):
        deadline = time.monotonic() + seconds
        while marker not in self.output:
            data = self.process.stdout.read()
            if data:
                self.output += data.decode(errors='replace').replace('\r', '')
            elif data == b'' or time.monotonic() > deadline:
                raise Failed(f'no {marker}: {self.output[-500:]!r}')
            else:
                time.sleep(0.02)

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


# ---- disk ----

def parse_disk(text):
    """Requests a second."""
    return {(m[1], m[2], int(m[3]), int(m[4])): int(m[5]) / int(m[6]) * 1e9 for m in DISK_LINE.finditer(text)}


def disk_native(load, image, milliseconds):
    done = [subprocess.run([load, image, *map(str, one), str(milliseconds)], stdout=subprocess.PIPE, text=True, check=True) for one in LOADS]
    return parse_disk(''.join(one.stdout for one in done))


def disk_guest(machine, boot, image, cache, milliseconds, timeout, native):
    """Rounds of native() and the guest in turn, as disks are faster at one time than at another: two lists of what they did."""
    loads = '+'.join(','.join(map(str, (*load, milliseconds))) for load in LOADS)
    devices = {'tcg': ['-drive', f'file={image},format=raw,if=virtio,cache={cache}'],
               'ring3': ['--disk', f'{image},format=raw,cache={cache}']}
    guest = Guest(machine, boot, f'io.rounds={ROUNDS} io.disk={loads}', devices)
    both = [], []
    try:
        for number in range(ROUNDS):
            guest.until(f'@@READY{number + 1}@@', timeout)
            both[0].append(native())
            guest.output = ''
            guest.process.stdin.write(b'\n')
            guest.process.stdin.flush()
            guest.until(f'@@READY{number + 2}@@' if number + 1 < ROUNDS else '@@DONE@@', timeout)
            both[1].append(parse_disk(guest.output))
    finally:
        guest.close()
    return both


def disk(machines, folder, options):
    """Prints the table; returns what failed."""
    load = build(folder)
    boot = guest_files(folder, load, False)
    image = folder + '/disk.raw'
    with open(image, 'wb') as file:
        for _ in range(DISK_BYTES >> 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    milliseconds = 150 if options.quick else 500
    columns, failures, native = [], [], []
    copy = folder + '/guest.raw'
    for machine in machines:
        for cache in ('none',) if machine['tcg'] else ('none', 'writeback'):
            name = f'{machine["name"]} {cache}'
            print(f'disk: {name} ...', file=sys.stderr)
            try:
                shutil.copy(image, copy)
                subprocess.run(['sync', copy], check=True)
                own, rates = disk_guest(machine, boot, copy, cache, milliseconds, options.timeout, lambda: disk_native(load, image, milliseconds))
                native += own
                columns.append((name, {key: statistics.median(b[key] / a[key] for a, b in zip(own, rates)) for key in own[0]}))
            except Failed as failure:
                failures.append(f'disk: {name}: {failure}')
    print('\nDisk, requests past the guest\'s page cache: fraction of the host\'s own on such a file, in turn with it, more is better')
    print('(none: past the host\'s page cache, too, as the native ones; writeback: through it)')
    print(f'{"":24s}{"native MiB/s":>14s}' + ''.join(f'{name:>24s}' for name, _ in columns))
    rates = {key: statistics.median(one[key] for one in native) for key in native[0]} if native else {}
    for key, rate in rates.items():
        rw, order, block, depth = key
        cells = ''.join(f'{ratios[key]:24.2f}' for _, ratios in columns)
        print(f'{rw} {order} {block >> 10:4d} KiB x {depth:<6d}{rate * block / (1 << 20):14.1f}{cells}')
    return failures, {'native': {str(key): rate for key, rate in rates.items()},
                      'guests': {name: {str(key): ratio for key, ratio in ratios.items()} for name, ratios in columns}}


# ---- network ----

def parse_net(text):
    """(average ms of the first pings, and of later ones; Mbit/s to and from the peer)."""
    pings = [re.search(rf'^{word} .*= [\d.]+/([\d.]+)/', text, re.MULTILINE) for word in ('FIRST', 'PING')]
    rates = [re.search(rf'^{word} .* ([\d.]+) Mbits/sec', text, re.MULTILINE) for word in ('TO', 'FROM')]
    if not all(pings) or not all(rates):
        raise Failed(f'no figures: {text[-500:]!r}')
    return tuple(float(match[1]) for match in pings + rates)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def net_user(machine, boot, seconds, timeout):
    server = subprocess.Popen(['iperf3', '-s', '-B', '127.0.0.1', '-p', str(PORT)], stdout=subprocess.DEVNULL)
    devices = {'tcg': ['-netdev', 'user,id=n', '-device', 'virtio-net-pci,netdev=n'], 'ring3': ['--net', 'user']}
    try:
        guest = Guest(machine, boot, f'io.address=10.0.2.15 io.peer=10.0.2.2 io.time={seconds}', devices)
        try:
            guest.until('@@DONE@@', timeout)
        finally:
            guest.close()
    finally:
        server.kill()
        server.wait()
    return parse_net(guest.output)


def net_switch(machine, boot, seconds, timeout):
    port, name = free_port(), f'bench{os.getpid()}'
    ends = []
    for number, way in ((1, 'listen'), (2, 'connect')):
        ends.append({'tcg': ['-netdev', f'socket,id=n,{way}=127.0.0.1:{port}',
                             '-device', f'virtio-net-pci,netdev=n,mac=52:54:00:00:00:0{number}'],
                     'ring3': ['--net', 'switch:' + name]})
    server = Guest(machine, boot, 'io.address=10.9.9.1 io.serve', ends[0])
    try:
        server.until('@@SERVES@@', timeout)
        client = Guest(machine, boot, f'io.address=10.9.9.2 io.peer=10.9.9.1 io.time={seconds}', ends[1])
        try:
            client.until('@@DONE@@', timeout)
        finally:
            client.close()
    finally:
        server.close()
    return parse_net(client.output)


def net(machines, folder, options):
    if not shutil.which('iperf3'):
        return ['net: iperf3 is missing; tools/setup bench installs it'], {}
    boot = guest_files(folder, build(folder), True)
    seconds = 2 if options.quick else 5
    failures, results = [], {}
    for what, function in (('user', net_user), ('switch', net_switch)):
        for machine in machines:
            print(f'net {what}: {machine["name"]} ...', file=sys.stderr)
            try:
                results[what, machine['name']] = function(machine, boot, seconds, options.timeout)
            except Failed as failure:
                failures.append(f'net {what}: {machine["name"]}: {failure}')
    print('\nNetwork: iperf3 to and from the peer (Mbit/s), ping (average ms: the first 20, and after 140), and ratios to TCG')
    print(f'{"":24s}' + ''.join(f'{head:>10s}' for head in ('first', 'ping', 'to', 'from')) +
          ''.join(f'{head + "/TCG":>12s}' for head in ('first', 'ping', 'to', 'from')))
    for (what, name), values in results.items():
        tcg = results.get((what, 'TCG'))
        ratios = ''.join(f'{mine / other:12.2f}' for mine, other in zip(values, tcg)) if tcg else ''
        print(f'{what + " " + name:24s}' + ''.join(f'{value:10.3f}' for value in values[:2]) +
              ''.join(f'{value:10.0f}' for value in values[2:]) + ratios)
    return failures, {' '.join(key): value for key, value in results.items()}
