#!/usr/bin/env python3
"""The control socket, with a Linux guest: the balloon really gives memory back to the host, free pages are reported, the
machine pauses, hears its power button and ends; bad commands and bad clients harm nothing.

    test_control.py --vmm build/ring3
"""
import argparse
import os
import socket
import sys
import tempfile
import time

from guest import PATIENCE, Control, Failed, Machine, files

MIB = 1 << 20
SCRIPT = '''
dd if=/dev/zero of=/tmp/x bs=1M count=90 2>/dev/null
echo @@FULL@@
read line
rm /tmp/x
echo @@FREE@@
while true; do sleep 1; echo @@ALIVE@@; done
'''


def check(good, what):
    if not good:
        raise Failed(what)


def memory_when(control, question, seconds, what):
    """What the machine says of its memory, once the question holds. (The guest's own figures may be old when it is slow to answer.)"""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        memory = control.memory()
        if question(memory):
            return memory
        if time.monotonic() > deadline:
            raise Failed(f'{what}: {memory}')
        time.sleep(0.1)


def bad_commands(control):
    for command, answer in (('balloon', 'needs a size'), ('balloon 12x', 'needs a size'), ('balloon 300M', 'only 256 MiB'),
                            ('fly', 'unknown command'), ('pause now', 'too much'), ('x' * 300, 'too long')):
        try:
            control.ask(command)
            check(False, f'{command!r} was taken')
        except Failed as failure:
            check(answer in str(failure), f'{command!r}: {failure}')
        if len(command) > 256:
            # What is behind the first 256 bytes is a line of its own.
            check('unknown command' in control.stream.readline(), 'the rest of a line too long')


def bad_clients(path):
    """They hang up in the middle of a line, or before they read."""
    for text in (b'bal', b'help\n' * 1000, b'memory\n', b'\n\n\0\xff\n'):
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        client.settimeout(0.2)
        try:
            client.sendall(text)
        except socket.timeout:
            pass
        client.close()


def balloon(machine, control):
    full = memory_when(control, lambda now: 0 < now.get('guest-free', 0) < 130 * MIB, 30, 'statistics')
    check(full['resident'] > 120 * MIB, f'the guest holds {full["resident"] // MIB} MiB only')
    check(full['guest-total'] > 200 * MIB, f'statistics: {full}')
    machine.send('\n')
    machine.until('@@FREE@@', 20)
    # Free page reporting: without anybody's command.
    reported = memory_when(control, lambda now: now['resident'] < full['resident'] - 60 * MIB and
                           now['guest-free'] > full['guest-free'] + 80 * MIB, 30, 'freed pages do not come back')
    control.ask('balloon 100M')
    small = memory_when(control, lambda now: now['balloon-actual'] == 100 * MIB, 30, 'the balloon does not grow')
    check(small['balloon-target'] == 100 * MIB, 'target')
    check(small['resident'] <= reported['resident'] + 4 * MIB, 'a balloon takes memory')
    memory_when(control, lambda now: now['guest-free'] < reported['guest-free'] - 90 * MIB, 30, 'the guest has as much memory as before')
    control.ask('balloon 0')
    memory_when(control, lambda now: now['balloon-actual'] == 0, 30, 'the balloon does not shrink')
    memory_when(control, lambda now: now['guest-free'] > reported['guest-free'] - 8 * MIB, 30, 'memory does not return to the guest')
    print(f'resident: {full["resident"] // MIB} MiB in use, {reported["resident"] // MIB} reported free, '
          f'{small["resident"] // MIB} with a balloon')


def pause(machine, control):
    control.ask('pause')
    control.ask('pause')
    # What it said before may still be on its way; then it is silent for longer than it ever is.
    silent, deadline = time.monotonic(), time.monotonic() + 30 * PATIENCE
    while time.monotonic() < silent + 2.5:
        machine.output = ''
        machine.read(0.1)
        if '@@ALIVE@@' in machine.output:
            silent = time.monotonic()
        check(time.monotonic() < deadline, 'a paused guest goes on')
    machine.output = ''
    check(control.memory()['ram'] == 256 * MIB, 'memory of a paused machine')
    control.ask('continue')
    machine.until('@@ALIVE@@', 20)


def main():
    parser = argparse.ArgumentParser(description='The control socket.')
    parser.add_argument('--vmm', required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = folder + '/control'
        boot = files(folder, SCRIPT)
        for end in ('quit', 'reset', 'paused'):
            with Machine(options.vmm, boot, ['--control', path]) as machine:
                machine.until('@@FULL@@', 120)
                if end == 'quit':
                    bad_clients(path)
                control = Control(path)
                if end == 'quit':
                    check(len(control.ask('help')) >= 8, 'help')
                    bad_commands(control)
                    balloon(machine, control)
                    pause(machine, control)
                    control.ask('power-button')
                if end == 'paused':
                    control.ask('pause')
                control.ask('reset' if end == 'reset' else 'quit')
                status = machine.end(20)
                control.close()
                check(status == 0, f'{end}: exit status {status}')
            check(not os.path.exists(path), 'the socket is left behind')
    print('ok')


if __name__ == '__main__':
    try:
        main()
    except Failed as failed:
        print(f'FAILED: {failed}')
        sys.exit(1)
