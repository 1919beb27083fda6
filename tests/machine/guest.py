"""What tests with a Debian kernel of their own have in common: an initramfs with the virtio modules and a script, the
machine's process, its console, its control socket."""
import os
import re
import select
import socket
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODULES = 'virtio_pci,virtio_blk,virtio_net,virtio_console,virtio_rng,virtio_balloon'
SKIPPED = 77
# Time limits are for a quiet machine; this one may be busy, or everything slow under a sanitizer.
PATIENCE = 20 if 'ASAN_OPTIONS' in os.environ or 'TSAN_OPTIONS' in os.environ else 6


class Failed(Exception):
    pass


def files(folder, script, add=(), programs=(), modules=MODULES, kernel='cloud'):
    """(kernel, initramfs) with /etc/script, or exits as skipped where there is no kernel to be had."""
    fetched = subprocess.run([ROOT + '/tools/fetch-guest', kernel, kernel + '-modules', 'busybox'],
                             stdout=subprocess.PIPE, text=True)
    paths = fetched.stdout.split('\n')[:3]
    if fetched.returncode or not all(paths):
        print('no guest kernel: Debian\'s archive cannot be reached and the cache is empty')
        sys.exit(SKIPPED)
    with open(folder + '/script', 'w', encoding='ascii') as file:
        file.write(script)
    command = [ROOT + '/tools/make-initramfs', '-o', folder + '/initramfs.cpio', '--busybox', paths[2],
               '--script', folder + '/script', '--modules', paths[1] + ':' + modules]
    for pair in add:
        command += ['--add', pair]
    for program in programs:
        command += ['--program', program]
    subprocess.run(command, check=True)
    return paths[0], folder + '/initramfs.cpio'


class Machine:
    """A running ring3. `options` behind kernel and initramfs."""

    def __init__(self, vmm, boot, options=(), append='', memory='256M', stderr=subprocess.STDOUT):
        self.output = ''
        self.process = subprocess.Popen(
            [vmm, 'run', '--kernel', boot[0], '--initrd', boot[1], '--memory', memory, '--no-reboot',
             '--append', 'console=ttyS0 quiet panic=-1 ' + append, *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0)

    def read(self, seconds):
        """Takes what comes within that time. False: nothing more will come."""
        if not select.select([self.process.stdout], [], [], max(seconds, 0))[0]:
            return True
        data = os.read(self.process.stdout.fileno(), 65536)
        self.output += data.decode(errors='replace').replace('\r', '')
        return bool(data)

    def until(self, pattern, seconds):
        """Waits for the pattern in the output; the match."""
        seconds *= PATIENCE
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.output)):
            left = deadline - time.monotonic()
            if left <= 0 or not self.read(left):
                raise Failed(f'no {pattern!r} {"within %g seconds" % seconds if left <= 0 else "before the end"}:\n'
                             + self.output[-3000:])
        return match

    def send(self, text):
        self.process.stdin.write(text.encode())

    def end(self, seconds):
        """The exit status, once everything has been read."""
        deadline = time.monotonic() + seconds * PATIENCE
        while self.read(deadline - time.monotonic()):
            if time.monotonic() > deadline:
                raise Failed('the machine does not end:\n' + self.output[-3000:])
        return self.process.wait(timeout=10 * PATIENCE)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stdin.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Control:
    """--control: one command, one answer."""

    def __init__(self, path, seconds=10):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds * PATIENCE)
        self.socket.connect(path)
        self.stream = self.socket.makefile('rw')

    def ask(self, command):
        """The lines before "ok"; Failed with the line "error: ..."."""
        self.stream.write(command + '\n')
        self.stream.flush()
        lines = []
        while True:
            line = self.stream.readline()
            if not line:
                raise Failed('the control socket was closed')
            line = line.rstrip('\n')
            if line == 'ok':
                return lines
            if line.startswith('error'):
                raise Failed(line)
            lines.append(line)

    def memory(self):
        return {line.split()[0]: int(line.split()[1]) for line in self.ask('memory')}

    def close(self):
        self.stream.close()
        self.socket.close()
