#!/usr/bin/env python3
"""Crash consistency, from a guest's fsync to the image files: ring3 is killed at random moments while a guest writes records to a file
system and to a bare disk and acknowledges each when the kernel says that it is on the disk. After each kill every acknowledged record is
there, qemu-img finds no error in the images, and e2fsck none in the file system. The next guest goes on with the same images.

    test_crash.py --vmm build/ring3 [--kills N] [--seed N]
"""
import argparse
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time

from guest import PATIENCE, ROOT, Failed, Machine, files

LINE, BLOCK, EVERY, KEEP = 24, 4096, 8, 4  # as in fsync_log.c
SIZE = 96 << 20
SCRIPT = '''
mkdir /mnt
mount -t ext4 /dev/vda /mnt || { dmesg | tail; echo @@FAILED mount; }
for word in $(cat /proc/cmdline); do case $word in next=*) next=${word#*=} ;; esac; done
echo @@READY
fsync_log /mnt /dev/vdb $next /dev/hvc0
echo @@FAILED
'''


def mix(number):
    number = ((number ^ number >> 31) * 0x9e3779b97f4a7c15) & (1 << 64) - 1
    return (number ^ number >> 29) & 0xffffffffffff


def run(*command, good=(0,)):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode not in good:
        raise Failed(f'{" ".join(command)}: status {result.returncode}\n{result.stdout.decode(errors="replace")[-2000:]}')
    return result.stdout


class Images:
    def __init__(self, folder, options):
        self.folder = folder
        self.files = folder + '/files.qcow2'
        self.blocks = folder + '/blocks.qcow2'
        raw = folder + '/empty'
        with open(raw, 'wb') as file:
            file.truncate(SIZE)
        run('mke2fs', '-q', '-t', 'ext4', '-F', raw)
        run('qemu-img', 'convert', '-O', 'qcow2', raw, self.files)
        os.unlink(raw)
        # Small clusters: nearly every record allocates.
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', f'cluster_size={options.cluster}', self.blocks, str(SIZE))

    def raw_copy(self, image):
        # Leaked clusters (status 3) are lost space, which a crash may leave; errors are 2.
        run('qemu-img', 'check', '-q', image, good=(0, 3))
        copy = self.folder + '/copy'
        run('qemu-img', 'convert', '-O', 'raw', image, copy)
        return copy

    def check_files(self, records, created):
        """The log holds at least so many records, the folder the newest of the files that were created."""
        copy = self.raw_copy(self.files)
        run('e2fsck', '-p', copy, good=(0, 1))  # replays the journal, as a mount does
        run('e2fsck', '-fn', copy)
        if not records:
            return
        log = run('debugfs', '-R', 'cat /log', copy)
        log = log[log.find(b'\n') + 1:] if log.startswith(b'debugfs') else log
        for number in range(1, records + 1):
            want = b'%010d %012x\n' % (number, mix(number))
            got = log[(number - 1) * LINE:number * LINE]
            if got != want:
                raise Failed(f'record {number} of {records} in the file: {got!r}')
        names = run('debugfs', '-R', 'ls -p /d', copy).decode()
        there = [int(name) for name in re.findall(r'^/\d+/\d+/\d+/\d+/(\d+)/', names, re.M)]
        for number in created:
            # Newer ones may be there that were not acknowledged (of several guests one after the other), and have removed others.
            if number > max(there, default=0) - KEEP * EVERY and number not in there:
                raise Failed(f'file {number} of {created} is not in the folder:\n{names}')
        if created and max(there, default=0) < created[-1]:
            raise Failed(f'the newest file of {created} is not in the folder:\n{names}')

    def check_blocks(self, records):
        """The device's records that must be there. Returns the number of the newest that is."""
        copy = self.raw_copy(self.blocks)
        newest = {}
        for number in range(1, records + 1):
            newest[mix(number) % (SIZE // BLOCK)] = number
        with open(copy, 'rb') as file:
            for place, number in newest.items():
                file.seek(place * BLOCK)
                found = struct.unpack(f'<{BLOCK // 8}Q', file.read(BLOCK))
                # A later one may have come over it that was not acknowledged.
                if found[0] != number and not (number < found[0] and mix(found[0]) % (SIZE // BLOCK) == place):
                    raise Failed(f'record {number} of {records} on the device: {found[:4]}')
                number = found[0]
                if any(found[i] != number or found[i + 1] != mix(number + i) for i in range(0, BLOCK // 8, 2)):
                    raise Failed(f'record {number} on the device is mixed up: {found[:8]}')


def acknowledged(path, before):
    """The numbers that have been acknowledged, by kind, in all; of F and B only the newest."""
    now = {'F': before['F'], 'B': before['B'], 'C': list(before['C'])}
    with open(path, 'rb') as file:
        for kind, number in re.findall(rb'([FCB]) (\d+)\r?\n', file.read()):
            if kind == b'C':
                now['C'].append(int(number))
            else:
                now[kind.decode()] = int(number)
    return now


def main():
    parser = argparse.ArgumentParser(description='Kills ring3 at random moments.')
    parser.add_argument('--vmm', required=True)
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--seed', type=int, default=int(time.time()) & 0xffff)
    parser.add_argument('--cluster', type=int, default=4096)
    parser.add_argument('--cache', default='writeback')
    options = parser.parse_args()
    print(f'seed {options.seed}', flush=True)
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        program = folder + '/fsync_log'
        run(os.environ.get('CC', 'gcc').split()[0], '-O2', '-std=gnu17', '-D_GNU_SOURCE', '-static', '-o', program,
            ROOT + '/tests/machine/fsync_log.c')
        boot = files(folder, SCRIPT, add=[program + ':/bin/fsync_log'], modules='virtio_pci,virtio_blk,virtio_console')
        images = Images(folder, options)
        last = {'F': 0, 'C': [], 'B': 0}
        told = folder + '/told'
        # Often soon after the first records, sometimes while the guest boots and mounts.
        booting = 1.0
        for kill in range(options.kills):
            started = time.monotonic()
            with Machine(options.vmm, boot, ['--disk', f'{images.files},format=qcow2,cache={options.cache}',
                                             '--disk', f'{images.blocks},format=qcow2,cache={options.cache}',
                                             '--virtio-console', 'file:' + told], f'next={last["B"] + 1}') as machine:
                if kill and random.random() < 0.15:
                    time.sleep(random.uniform(0.3, 1) * booting)
                else:
                    machine.until('@@READY', 200)
                    booting = time.monotonic() - started
                    deadline = time.monotonic() + 100 * PATIENCE
                    while time.monotonic() < deadline:
                        now = acknowledged(told, last)
                        if now['F'] >= last['F'] + 3 and now['B'] >= last['B'] + 3:
                            break
                        machine.read(0.02)
                    time.sleep(random.expovariate(2.5))
                if '@@FAILED' in machine.output or machine.process.poll() is not None:
                    raise Failed('the guest failed:\n' + machine.output)
                machine.process.kill()
            now = acknowledged(told, last)
            print(f'kill {kill + 1} after {time.monotonic() - started:.2f} s: '
                  f'F {now["F"]}, B {now["B"]}, C {len(now["C"])}', flush=True)
            try:
                images.check_files(now['F'], now['C'])
                images.check_blocks(now['B'])
            except Failed:
                if os.environ.get('KEEP'):
                    run('cp', images.files, images.blocks, told, os.environ['KEEP'])
                raise
            last = now
        if last['F'] < options.kills or last['B'] < options.kills or not last['C']:
            raise Failed(f'too few records: {last}')
    print('ok')


if __name__ == '__main__':
    try:
        main()
    except Failed as failed:
        print(f'FAILED: {failed}')
        sys.exit(1)
