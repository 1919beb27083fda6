#!/usr/bin/env python3
"""What can be seen of the translator from outside: --stats, --trace translate and --perf-map over one small guest.

    test_inside.py --vmm build/ring3 build/guests/paging64.bin
"""
import argparse
import os
import re
import subprocess
import sys

failures = 0


def check(good, what):
    global failures
    if not good:
        print('FAIL ' + what)
        failures += 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('guest')
    parser.add_argument('--vmm', required=True)
    options = parser.parse_args()
    command = [options.vmm, 'run', '--engine', 'translator', '--memory', '128M', '--debug-exit', '--no-reboot', '--console', 'none',
               '--kernel', options.guest, '--stats', '--perf-map', '--trace', 'translate']
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.communicate(timeout=500)[1].decode(errors='replace')
    check(process.returncode == 1, f'status {process.returncode}')

    def counter(name):
        match = re.search('^' + re.escape(name) + r' +([0-9.]+)', error, re.M)
        check(match, f'no counter "{name}"')
        return float(match.group(1)) if match else 0

    blocks = counter('blocks translated')
    check(blocks > 0, 'blocks are translated')
    check(counter('host code, bytes') > blocks * 16, 'bytes of host code')
    check(counter('guest instructions in it') >= blocks, 'instructions')
    check(counter('instructions run translated, about') > 100, 'instructions executed')
    entries = counter('entries into translated code')
    exits = sum(float(n) for n in re.findall(r'^exits: .*? (\d+)$', error, re.M))
    check(entries > 0 and exits > 0, f'{entries} entries, {exits} exits')
    check(counter('slow accesses: filled the TLB') > 0, 'slow accesses')
    check(counter('run time, ms') > 0 and counter('translation time, ms') > 0, 'times')
    check(re.search(r'^instructions left to the interpreter: [1-9]', error, re.M), 'fallbacks')
    check(re.search(r'^    [a-z0-9()]+ +\d+ +[0-9.]+ %$', error, re.M), 'fallbacks by mnemonic')

    traced = re.findall(r'translate: block \d+ at ([0-9a-f]{16})', error)
    check(len(traced) == blocks, f'{len(traced)} blocks in the trace, not {blocks:g}')
    check(len(re.findall(r'translate:   ended: .+; \d+ bytes of guest code, \d+ of host code', error)) == blocks, 'why they ended')
    check(re.search(r'translate:   [0-9a-f]{16} [a-z]', error), 'guest code in the trace')
    check(re.search(r'translate:     .{2}[0-9a-f]{12} [a-z]', error), 'host code in the trace')

    path = f'/tmp/perf-{process.pid}.map'
    with open(path) as file:
        lines = file.read().splitlines()
    os.unlink(path)
    named = [re.fullmatch(r'[0-9a-f]+ [0-9a-f]+ guest 0x([0-9a-f]+)', line) for line in lines]
    check(sorted(int(m.group(1), 16) for m in named if m) == sorted(int(rip, 16) for rip in traced), 'the map for perf')
    check(any(' ring3 ' in line for line in lines), "ring3's own code in the map")
    if failures:
        print(error[-3000:])
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
