#!/usr/bin/env python3
"""A Linux guest that writes, reads and verifies on two disks, pings, draws random numbers and prints on two consoles is saved
and loaded in the middle of it, between the engines, and notices nothing but lost packets.

    test_state_linux.py --program build/tests/machine/state_linux [--seed N] [--moves N] [--cpus N]
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import time

from guest import files

# Each worker verifies what it wrote, past the page cache, and leaves a file when something is wrong. Places do not overlap.
SCRIPT = r'''
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
dd if=/dev/urandom of=/tmp/data bs=64k count=48 2>/dev/null
sum=$(sha256sum < /tmp/data)
worker() { # DISK FIRST-MIB ROUNDS
	n=0
	while [ $n -lt $3 ]; do
		at=$(($2 + n % 4 * 4))
		dd if=/tmp/data of=/dev/$1 bs=64k seek=$((at * 16)) oflag=direct conv=notrunc 2>/dev/null || echo write $1 $n >> /tmp/wrong
		got=$(dd if=/dev/$1 bs=64k skip=$((at * 16)) count=48 iflag=direct 2>/dev/null | sha256sum)
		[ "$got" = "$sum" ] || echo read $1 $n $got >> /tmp/wrong
		[ $((n % 3)) = 0 ] && sync
		n=$((n + 1))
		echo "$1 $n" >> /tmp/done
	done
}
small() { # DISK FIRST-BLOCK ROUNDS: 4 KiB at once
	n=0
	while [ $n -lt $3 ]; do
		dd if=/dev/urandom of=/tmp/block.$1 bs=4096 count=1 2>/dev/null
		dd if=/tmp/block.$1 of=/dev/$1 bs=4096 seek=$(($2 + n)) oflag=direct conv=notrunc 2>/dev/null
		dd if=/dev/$1 of=/tmp/back.$1 bs=4096 skip=$(($2 + n)) count=1 iflag=direct 2>/dev/null
		cmp -s /tmp/block.$1 /tmp/back.$1 || echo small $1 $n >> /tmp/wrong
		n=$((n + 1))
	done
}
(while true; do ping -c 1 -W 5 10.0.2.2 >/dev/null && echo p >> /tmp/pings; done) &
(while true; do dd if=/dev/hwrng bs=64 count=16 2>/dev/null | wc -c >> /tmp/random; done) &
(n=0; while [ $n -lt 100000 ]; do echo "hvc line $n"; n=$((n + 1)); usleep 20000; done > /dev/hvc0) &
before=$(cut -d. -f1 /proc/uptime)
echo @@START
worker vda 0 ROUNDS & a=$!
worker vda 32 ROUNDS & b=$!
worker vdb 0 ROUNDS & c=$!
small vda 16384 SMALL & d=$!
small vdb 16384 SMALL & e=$!
wait $a $b $c $d $e
pings=$(wc -l < /tmp/pings); drawn=$(wc -l < /tmp/random)
ping -c 1 -W 20 10.0.2.2 >/dev/null || echo "no ping in the end" >> /tmp/wrong
[ $(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c) = 64 ] || echo "no random numbers in the end" >> /tmp/wrong
[ "$pings" -gt 2 ] || echo "pings: $pings" >> /tmp/wrong
[ "$(wc -l < /tmp/done)" = $((3 * ROUNDS)) ] || echo "rounds: $(wc -l < /tmp/done)" >> /tmp/wrong
dmesg | grep -E 'BUG|WARNING|Oops|I/O error|stall|lockup|virtio.*(bad|unexpected|wrong)' >> /tmp/wrong
echo "pings $pings drawn $drawn uptime $(($(cut -d. -f1 /proc/uptime) - before))"
if [ -s /tmp/wrong ]; then head -n 20 /tmp/wrong; echo "@@RESULT wrong"; else echo "@@RESULT ok"; fi
'''


def main():
    parser = argparse.ArgumentParser(description='Saves and loads a busy Linux guest.')
    parser.add_argument('--program', required=True)
    parser.add_argument('--seed', type=int, default=int(time.time()) & 0xffff)
    parser.add_argument('--moves', type=int, default=4)
    parser.add_argument('--cpus', type=int, default=1)
    options = parser.parse_args()
    rounds = 2 * options.moves
    script = SCRIPT.replace('ROUNDS', str(rounds)).replace('SMALL', str(10 * options.moves))
    print(f'seed {options.seed}', flush=True)
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        boot = files(folder, script)
        qcow2, raw = folder + '/a.qcow2', folder + '/b.raw'
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', qcow2, '256M'], check=True)
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'raw', raw, '256M'], check=True)
        program = subprocess.run([options.program, folder, *boot, str(options.seed), str(options.moves), str(options.cpus),
                                  qcow2, raw], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(program.stdout)
        if program.returncode:
            failures.append(f'exit status {program.returncode}')
        com = hvc = ''
        for number in range(options.moves + 1):
            for name in ('com', 'hvc'):
                path = f'{folder}/{name}.{number}'
                if os.path.exists(path):
                    with open(path, encoding='ascii', errors='replace') as file:
                        text = file.read().replace('\r', '')
                    com, hvc = (com + text, hvc) if name == 'com' else (com, hvc + text)
        if '@@RESULT ok' not in com:
            failures.append('the guest: ' + com[-2000:])
        moves = len(re.findall('^move', program.stdout, re.MULTILINE))
        if moves < 2:
            failures.append(f'only {moves} moves')
        # The second console's lines come once each and in order, from whichever machine.
        lines = [int(number) for number in re.findall(r'hvc line (\d+)\n', hvc)]
        if lines != list(range(len(lines))) or len(lines) < 10:
            failures.append(f'hvc0: {lines[:5]} ... {len(lines)} lines, out of order or lost')
        print(re.findall('pings.*', com), len(lines), 'lines on hvc0')
        check = subprocess.run(['qemu-img', 'check', qcow2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if check.returncode:
            failures.append('qemu-img check: ' + check.stdout)
    for failure in failures:
        print('FAILED: ' + failure)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
