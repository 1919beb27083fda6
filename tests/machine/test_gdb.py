#!/usr/bin/env python3
"""Debugs guests with the real gdb: the stub seen from the other end.

    test_gdb.py --vmm build/ring3 --guest build/tests/machine/gdb_guest.elf [--engine NAME]    a guest with symbols
    test_gdb.py --vmm build/ring3 --linux cloud|standard [--engine NAME]                       Debian's kernel, by addresses

The same file is the script that gdb runs (`gdb -x`): the parts named in the environment's RING3_PART.
"""
import argparse
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

try:
    import gdb
except ImportError:
    gdb = None

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SECRET = 0xfeedfacecafebeef
SECRET_AT = 0x7f0000000000
ALIAS = 0xffffffff80000000
# Time limits are for a quiet machine; this one may be busy, or everything slow under a sanitizer.
SLOW = 20 if 'ASAN_OPTIONS' in os.environ or 'TSAN_OPTIONS' in os.environ else 5


class Failed(Exception):
    pass


# ---- Inside gdb ----

def run(command):
    return gdb.execute(command, to_string=True)


def value(expression):
    return int(gdb.parse_and_eval(expression)) & 0xffffffffffffffff


def address(symbol):
    return value(f'(unsigned long)&{symbol}')


def check(good, what):
    if not good:
        raise Failed(what)


def equal(got, wanted, what):
    check(got == wanted, f'{what}: {got:#x}, not {wanted:#x}')


def at(symbol, what):
    equal(value('$pc'), address(symbol), what)


def refused(command, message):
    try:
        text = run(command)
    except gdb.error as error:
        check(message in str(error), f'{command}: {error}')
        return
    raise Failed(f'{command}: works: {text}')


def thread():
    return gdb.selected_thread().num


def resume(command='continue'):
    """A command that lets the guest run; returns what ended that: 'breakpoint', 'watchpoint', a signal's name or 'exited'."""
    ends = []

    def stopped(event):
        if isinstance(event, gdb.SignalEvent):
            ends.append(event.stop_signal)
        elif isinstance(event, gdb.BreakpointEvent):
            breakpoints = (gdb.BP_BREAKPOINT, gdb.BP_HARDWARE_BREAKPOINT)
            ends.append('breakpoint' if event.breakpoints[0].type in breakpoints else 'watchpoint')
        else:
            ends.append('exited' if isinstance(event, gdb.ExitedEvent) else 'step')

    gdb.events.stop.connect(stopped)
    gdb.events.exited.connect(stopped)
    try:
        run(command)
    finally:
        gdb.events.stop.disconnect(stopped)
        gdb.events.exited.disconnect(stopped)
    check(ends, f'{command}: nothing happened')
    return ends[-1]


def expect(wanted, command='continue'):
    got = resume(command)
    check(got == wanted, f'{command} ended with {got}, not {wanted}')


def interrupted_continue(seconds):
    """continue, then Ctrl-C: the time counts from when the guest runs."""
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))

    def runs(_):
        gdb.events.cont.disconnect(runs)
        timer.start()

    gdb.events.cont.connect(runs)
    expect('SIGINT')
    timer.join()


def connect():
    run('set confirm off')
    run('set pagination off')
    run(f'set tcp connect-timeout {20 * SLOW}')
    run(f'set remotetimeout {60 * SLOW}')
    return run('target remote ' + os.environ['RING3_SOCKET'])


def part_registers():
    at('entry', 'the first stop')
    check(value('$cr0') & 0x80000001 == 1, f'cr0 is {value("$cr0"):#x} at the PVH entry')
    run('hbreak start64')
    expect('breakpoint')
    at('start64', 'hardware breakpoint')
    equal(value('$cr3'), address('pml4'), 'cr3')
    equal(value('$efer') & 0x500, 0x500, 'efer LME and LMA')
    equal(value('$cs'), 8, 'cs')
    check('rsp' in run('info registers') and 'mxcsr' in run('info all-registers'), 'info registers')
    run('set $rbx = 0x123456789abcdef0')
    equal(value('$rbx'), 0x123456789abcdef0, 'rbx as set')
    run('delete')


def part_breakpoints():
    run('break work')
    expect('breakpoint')
    at('work', 'software breakpoint')
    equal(value('$r15'), 0x1122334455667788, 'r15')
    equal(value('$xmm0.v2_int64[1]'), 0x0f0e0d0c0b0a0908, 'xmm0')
    check(float(gdb.parse_and_eval('$st0')) == 1.0, 'st0')
    before = value('*(unsigned long *)&counter')
    run('stepi')
    at('work_add', 'single step')
    equal(value('*(unsigned long *)&counter'), before + 1, 'counter after one step')
    run('nexti 2')
    at('watched_written', 'nexti 2')
    expect('breakpoint')
    at('work', 'the breakpoint again')
    equal(value('*(unsigned long *)&counter'), before + 1, 'counter one round later')
    check('work' in run('x/2i $pc'), 'x/i')
    # Once more through a condition and an ignore count, then set the program counter.
    run(f'tbreak work_read if $rax > {before + 20}')
    run('delete 2')
    expect('breakpoint')
    at('work_read', 'temporary breakpoint')
    check(value('$rax') > before + 20, 'the condition')
    run('set $pc = &work_end')
    run('stepi')
    check(value('$pc') < address('work') and value('$pc') > address('high'), 'stepi over RET after setting pc')
    run('delete')


def part_memory():
    for where, name in ((address('secret'), 'identity'), (ALIAS + address('secret'), 'alias'), (SECRET_AT, 'page of its own')):
        equal(value(f'*(unsigned long *){where}'), SECRET, f'memory through the page tables, {name}')
    refused('x/gx 0x600000000000', 'Cannot access memory')
    refused(f'x/gx {SECRET_AT + 0x1000}', 'Cannot access memory')
    refused('x/gx 0x1234567812345678', 'Cannot access memory')
    run(f'set var *(unsigned long *){SECRET_AT + 8} = 0x0123456789abcdef')
    check('89abcdef' in run(f'monitor xp/2 {address("secret") + 8}'), 'a write through one mapping, seen physically')
    equal(value(f'*(unsigned long *){ALIAS + address("secret") + 8}'), 0x0123456789abcdef, 'a write through one mapping')
    with tempfile.NamedTemporaryFile() as file:
        run(f'dump binary memory {file.name} {address("secret")} {address("secret") + 8192}')
        data = open(file.name, 'rb').read()
        check(len(data) == 8192 and data[:8] == SECRET.to_bytes(8, 'little'), 'dump memory')
    check('info' in run('monitor help'), 'monitor help')


def part_watchpoints():
    run('thread 1')
    run('watch *(unsigned long *)&watched')
    expect('watchpoint')
    at('watched_written', 'watchpoint: the instruction after the write')
    first = value('*(unsigned long *)&watched')
    expect('watchpoint')
    equal(value('*(unsigned long *)&watched'), first + 1, 'the next write')
    run('delete')
    run('rwatch *(unsigned long *)&read_only')
    expect('watchpoint')
    at('read_done', 'read watchpoint')
    run('delete')
    run('awatch *(unsigned long *)&read_only')
    expect('watchpoint')
    at('read_done', 'access watchpoint')
    run('delete')
    # An alias is another linear address: nothing hits there.
    run(f'watch *(unsigned long *){ALIAS + 0x3000000}')
    interrupted_continue(0.5)
    run('delete')


def part_threads():
    check(len(gdb.selected_inferior().threads()) == 2, run('info threads'))
    text = run('info threads')
    check('CPU 0' in text and 'CPU 1' in text, text)
    # The second vCPU alone gets there.
    run('break second_work')
    expect('breakpoint')
    equal(thread(), 2, 'thread that stopped')
    at('second_work', 'breakpoint of the second vCPU')
    run('delete')
    equal(value('$cr3'), address('pml4'), 'cr3 of the second vCPU')
    first = value('*(unsigned long *)&counter')
    for _ in range(4):
        run('stepi')
        equal(thread(), 2, 'thread after stepi')
        check(address('second_loop') <= value('$pc') <= address('second_work') + 4, 'stepi of the second vCPU')
    equal(value('*(unsigned long *)&counter'), first, 'the first vCPU while the second steps')
    run('thread 1')
    check(address('high') <= value('$pc') < address('second64'), f'pc of the first vCPU {value("$pc"):#x}')
    both = run('thread apply all print/x $pc')
    check('Thread 1' in both and 'Thread 2' in both, both)
    # Both stop at the same breakpoint set, each in turn.
    run('break work')
    run('break second_work')
    seen = set()
    for _ in range(5000):
        expect('breakpoint')
        seen.add(thread())
        if len(seen) == 2:
            break
    equal(len(seen), 2, 'vCPUs that stopped')
    run('delete')
    interrupted_continue(0.5)


def part_detach():
    first = value('*(unsigned long *)&counter')
    run('break work')
    for _ in range(60):
        run('detach')
        time.sleep(0.5)
        connect()
        second = value('*(unsigned long *)&counter')
        if second > first + 10:
            break
    check(second > first + 10, f'after detach the guest did not run: {first} {second}')
    run('delete')


def part_leave():
    run('set var *(unsigned long *)&leave_flag = 1')
    expect('exited')


def part_kill():
    run('kill')


def part_linux():
    functions = dict(item.split('=') for item in os.environ['RING3_SYMBOLS'].split())
    symbol = {name: int(text, 16) for name, text in functions.items()}
    run('set architecture i386:x86-64')
    equal(len(gdb.selected_inferior().threads()), 2, 'threads')
    text = run(f'x/s {symbol["linux_banner"]}')
    check('Linux version' in text, f'linux_banner: {text}')
    jiffies = value(f'*(unsigned long *){symbol["jiffies_64"]}')

    # The shell runs sync again and again.
    for kind in ('hbreak', 'break'):
        run(f'{kind} *{symbol["ksys_sync"]}')
        expect('breakpoint')
        equal(value('$pc'), symbol['ksys_sync'], f'{kind} in the kernel')
        equal(value('$cs') & 3, 0, 'CPL in the kernel')
        check(value('$gs_base') >> 47, 'gs_base in the kernel')
        stack = value('*(unsigned long *)$rsp')
        check(stack >> 47 == 0x1ffff, f'return address {stack:#x}')
        run('stepi')
        check(0 < value('$pc') - symbol['ksys_sync'] <= 15 or value('$pc') >> 47 == 0x1ffff, f'stepi: {value("$pc"):#x}')
        here = thread()
        for _ in range(200):
            run('stepi')
        equal(thread(), here, 'thread after 200 steps')
        check(value('$pc') >> 47 == 0x1ffff, f'after 200 steps: {value("$pc"):#x}')
        run('delete')
    # finish: the return address, in whichever vCPU.
    run(f'tbreak *{symbol["ksys_sync"]}')
    expect('breakpoint')
    back = value('*(unsigned long *)$rsp')
    run(f'tbreak *{back}')
    expect('breakpoint')
    equal(value('$pc'), back, 'return from ksys_sync')
    run(f'watch *(unsigned long *){symbol["jiffies_64"]}')
    expect('watchpoint')
    check(value(f'*(unsigned long *){symbol["jiffies_64"]}') > jiffies, 'jiffies')
    run('delete')
    # User code: its stack is readable, through its own CR3.
    check(re.search(r'CPU 0.*\n.*CPU 1', run('info threads')), 'info threads')
    interrupted_continue(1)
    run('detach')


def inside():
    status = 1
    try:
        if os.environ['RING3_PART'] != 'none':
            connect()
        for part in os.environ['RING3_PART'].split(','):
            started = time.monotonic()
            globals()['part_' + part]()
            print(f'{part}: {time.monotonic() - started:.1f} seconds', flush=True)
        status = 0
    except (Failed, gdb.error, gdb.MemoryError, RuntimeError, KeyError, ValueError) as failure:
        print(f'FAIL {part}: {failure}', flush=True)
        try:
            print(run('info threads') + run('info registers rip') + run('info breakpoints'))
        except gdb.error:
            pass
    gdb.execute(f'quit {status}')


# ---- Outside ----

def debug(parts, program, environment, seconds):
    seconds *= SLOW
    command = ['gdb', '-q', '-nx', '-batch'] + ([program] if program else []) + ['-x', os.path.abspath(__file__)]
    variables = dict(os.environ, RING3_PART=parts, **environment)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds,
                              env=variables, text=True)
    except subprocess.TimeoutExpired as late:
        sys.stdout.write((late.stdout or b'').decode(errors='replace'))
        raise Failed(f'gdb is not done with {parts} within {seconds} seconds')
    sys.stdout.write(done.stdout)
    if done.returncode:
        raise Failed(f'{parts}: gdb ended with status {done.returncode}')


def wait_for_socket(path, vmm):
    deadline = time.monotonic() + 30 * SLOW
    while not os.path.exists(path):
        if vmm.poll() is not None or time.monotonic() > deadline:
            raise Failed(f'ring3 does not listen (status {vmm.poll()})')
        time.sleep(0.02)


def ended(vmm, status):
    try:
        got = vmm.wait(timeout=30 * SLOW)
    except subprocess.TimeoutExpired:
        raise Failed('ring3 does not end')
    if got != status:
        raise Failed(f'ring3 ended with status {got}, not {status}')


def debug_guest(options, folder):
    for specification in (f'unix:{folder}/gdb', 'tcp'):
        address_of_socket = f'{folder}/gdb'
        if specification == 'tcp':
            with socket.create_server(('localhost', 0)) as free:
                port = free.getsockname()[1]
            specification, address_of_socket = f'tcp:localhost:{port}', f'localhost:{port}'
        vmm = subprocess.Popen([options.vmm, 'run', '--engine', options.engine, '--cpus', '2', '--memory', '64M', '--console', 'none',
                                '--kernel', options.guest, '--gdb', specification, '--stop'], stdin=subprocess.DEVNULL)
        try:
            if specification.startswith('unix'):
                wait_for_socket(address_of_socket, vmm)
                parts = 'registers,breakpoints,memory,watchpoints,threads,detach,leave'
            else:
                parts = 'registers,breakpoints,kill'
            debug(parts, options.guest, {'RING3_SOCKET': address_of_socket}, 120)
            ended(vmm, 0)
        finally:
            if vmm.poll() is None:
                vmm.kill()
                vmm.wait()


class Shell:
    """The serial console of a Linux guest."""

    def __init__(self, vmm):
        self.vmm, self.output, self.seen = vmm, '', 0

    def expect(self, pattern, seconds):
        seconds *= SLOW
        deadline = time.monotonic() + seconds
        while True:
            match = re.compile(pattern).search(self.output, self.seen)
            if match:
                self.seen = match.end()
                return match
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.vmm.stdout], [], [], left)[0]:
                raise Failed(f'no {pattern!r} within {seconds} seconds: {self.output[-500:]}')
            data = os.read(self.vmm.stdout.fileno(), 65536)
            if not data:
                raise Failed(f'ring3 ended while waiting for {pattern!r}: {self.output[-500:]}')
            self.output += data.decode(errors='replace').replace('\r', '')

    def send(self, text):
        self.vmm.stdin.write(text.encode())

    def prompt(self, seconds):
        """The shell's first prompt; the kernel may have written into the middle of it, so an empty line asks for another."""
        deadline = time.monotonic() + seconds * SLOW
        while True:
            try:
                return self.expect(r'root@ring3:.*# ', 20)
            except Failed:
                if self.vmm.poll() is not None or time.monotonic() > deadline:
                    raise
                self.send('\n')

    def power_off(self, seconds):
        """What is still printed must be read, or the guest's console stalls."""
        deadline = time.monotonic() + seconds * SLOW
        self.send('poweroff -f\n')
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.vmm.stdout], [], [], left)[0] and not os.read(self.vmm.stdout.fileno(), 65536):
                return
        raise Failed(f'not off within {seconds} seconds')


def debug_linux(options, folder):
    files = subprocess.run([ROOT + '/tools/fetch-guest', options.linux, 'busybox'], stdout=subprocess.PIPE, text=True)
    paths = files.stdout.split()
    if files.returncode or len(paths) != 2:
        print('no guest kernel: Debian\'s archive cannot be reached and the cache is empty')
        return 77
    initramfs = folder + '/initramfs.cpio'
    subprocess.run([ROOT + '/tools/make-initramfs', '-o', initramfs, '--busybox', paths[1]], check=True)
    vmm = subprocess.Popen([options.vmm, 'run', '--engine', options.engine, '--cpus', '2', '--memory', '256M', '--kernel', paths[0],
                            '--initrd', initramfs, '--append', 'console=ttyS0 panic=-1', '--gdb', f'unix:{folder}/gdb'],
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    try:
        shell = Shell(vmm)
        shell.prompt(300)
        shell.send('stty -echo; PS1="# "\n')
        shell.expect(r'\n# ', 60)
        shell.send('grep -E " (ksys_sync|linux_banner|jiffies_64)$" /proc/kallsyms; echo; echo done\n')
        shell.expect(r'done\n', 60)
        symbols = ' '.join(f'{name}={where}' for where, name in
                           re.findall(r'([0-9a-f]{16}) \w (ksys_sync|linux_banner|jiffies_64)', shell.output))
        shell.send('while :; do sync; sleep 0.2; done &\n')
        shell.expect(r'# ', 60)
        debug('linux', None, {'RING3_SOCKET': f'{folder}/gdb', 'RING3_SYMBOLS': symbols}, 200)
        # (busybox's shell without echo takes a child that ends at its prompt for the end of its input: hence the wait.)
        shell.send('kill $!; wait $!; echo still "he"re\n')
        shell.expect('still here\n(.*\n)*?# ', 60) # what comes before the prompt may be lost
        shell.power_off(200)
        ended(vmm, 0)
    finally:
        if vmm.poll() is None:
            vmm.kill()
            vmm.wait()
    return 0


def main():
    parser = argparse.ArgumentParser(description='Debugs guests of ring3 with gdb.')
    parser.add_argument('--vmm', default=ROOT + '/build/ring3')
    parser.add_argument('--engine', default='auto')
    parser.add_argument('--guest', help='the guest with symbols')
    parser.add_argument('--linux', choices=['cloud', 'standard'])
    options = parser.parse_args()
    started = time.monotonic()
    status = 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            if options.guest:
                debug_guest(options, folder)
            if options.linux:
                status = debug_linux(options, folder)
    except Failed as failure:
        print(f'FAIL {failure}')
        status = 1
    print(f'{time.monotonic() - started:.1f} seconds')
    return status


if gdb:
    inside()
elif __name__ == '__main__':
    sys.exit(main())
