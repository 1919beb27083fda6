#!/usr/bin/env python3
"""The network with a Linux guest: names through a resolver on the host's loopback, host ports that lead into the guest, passt
where it is installed; and disk and card as transitional devices under a driver that uses the legacy interface.

    test_net_linux.py --vmm build/ring3

Runs itself again in namespaces of its own, where port 53 and /etc/resolv.conf are free.
"""
import argparse
import http.server
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from guest import PATIENCE, SKIPPED, Failed, Machine, files

INSIDE = 'RING3_TEST_NAMESPACES'
NAME, ADDRESS = 'disk.test.example', '192.0.2.77'
FORWARDED, LOOPBACK_PORT = 2280, 8077
MESSAGE = b'hello from the host\n'

USER = f'''
ip link set lo up; ip link set eth0 up
cat > /tmp/dhcp <<'END'
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface; ip route add default via $router
for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done
END
chmod +x /tmp/dhcp
udhcpc -q -n -t 30 -i eth0 -s /tmp/dhcp >/dev/null 2>&1 || echo @@WRONG dhcp
cat /etc/resolv.conf
for try in 1 2 3 4 5 6 7 8 9 last; do
	nslookup -type=a {NAME} | grep -A1 {NAME} | grep {ADDRESS} && break
	[ $try != last ] || echo @@WRONG name
done
nslookup -type=a nowhere.example && echo @@WRONG no such name
wget -q -O - http://10.0.2.2:{LOOPBACK_PORT}/ || echo @@WRONG loopback
dd if=/dev/urandom of=/tmp/a bs=64k count=64 2>/dev/null
dd if=/tmp/a of=/dev/vda bs=64k oflag=direct 2>/dev/null
sync
dd if=/dev/vda bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/a || echo @@WRONG disk
for device in /sys/bus/virtio/devices/*; do
	echo "device $(cat $device/device) modern $(cut -c33 $device/features)"
done
echo @@LISTEN
echo "hello from the guest" | nc -l -p 80
echo @@DONE
'''
PASST = f'''
ip link set lo up; ip link set eth0 up
ip addr add 198.51.100.2/24 dev eth0; ip route add default via 198.51.100.1
n=0
while [ $n -lt 20 ]; do
	timeout 20 wget -q -O - http://198.51.100.1:{LOOPBACK_PORT}/ && break
	n=$((n + 1)); sleep 0.5
done
[ $n -lt 20 ] || echo @@WRONG passt
echo @@DONE
'''


def dns_server():
    """Answers A questions for NAME; nothing else exists."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(('127.0.0.1', 53))

    def serve():
        while True:
            question, client = server.recvfrom(2048)
            labels, at = [], 12
            while question[at]:
                labels.append(question[at + 1:at + 1 + question[at]].decode())
                at += 1 + question[at]
            kind, = struct.unpack('>H', question[at + 1:at + 3])
            known = '.'.join(labels) == NAME
            answers = 1 if known and kind == 1 else 0
            header = question[:2] + struct.pack('>HHHHH', 0x8180 if known else 0x8183, 1, answers, 0, 0)
            answer = b'\xc0\x0c' + struct.pack('>HHIH', 1, 1, 60, 4) + socket.inet_aton(ADDRESS) if answers else b''
            server.sendto(header + question[12:at + 5] + answer, client)

    threading.Thread(target=serve, daemon=True).start()


def web_server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Length', str(len(MESSAGE)))
            self.end_headers()
            self.wfile.write(MESSAGE)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', LOOPBACK_PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def finish(machine):
    machine.until('@@DONE@@|@@DONE', 60)
    status = machine.end(60)
    wrong = [line for line in machine.output.split('\n') if '@@WRONG' in line]
    if status or wrong or MESSAGE.decode() not in machine.output:
        raise Failed(f'status {status}, {wrong}:\n{machine.output[-3000:]}')


def read_forwarded(address):
    """What the guest says on its port 80."""
    deadline = time.monotonic() + 30 * PATIENCE
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((address, FORWARDED), timeout=20 * PATIENCE) as connection:
                text = connection.recv(100)
                if text:
                    return text
        except OSError:
            pass
        time.sleep(0.2)
    raise Failed('nobody answers at the forwarded port')


def user(options, folder):
    boot = files(folder, USER, modules='virtio_pci,virtio_blk,virtio_net')
    disk = folder + '/disk'
    with open(disk, 'wb') as file:
        file.truncate(16 << 20)
    with Machine(options.vmm, boot, ['--disk', disk + ',format=raw,transitional',
                                     '--net', f'user,hostfwd=tcp::{FORWARDED}-:80,transitional=on'],
                 'virtio_pci.force_legacy=1') as machine:
        machine.until('@@LISTEN', 200)
        # Without an address only the loopback listens.
        try:
            socket.create_connection(('198.51.100.2', FORWARDED), timeout=60).close()
            raise Failed('a forwarded port is open to others')
        except ConnectionRefusedError:
            pass
        text = read_forwarded('127.0.0.1')
        if text != b'hello from the guest\n':
            raise Failed(f'forwarded port: {text!r}')
        finish(machine)
        # 1: card, 2: disk.
        for device in ('0x0001 modern 0', '0x0002 modern 0'):
            if 'device ' + device not in machine.output:
                raise Failed('not the legacy interface:\n' + machine.output[-1500:])


def passt(options, folder):
    if not shutil.which('passt'):
        print('passt is not installed: not tested')
        return
    boot = files(folder, PASST, modules='virtio_pci,virtio_net')
    path = folder + '/passt.socket'
    os.chmod(folder, 0o777)  # passt drops root's rights
    # Its own log says what is wrong. It wants a network namespace with a default route, which we have made.
    helper = subprocess.Popen(['passt', '--foreground', '--socket', path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        with Machine(options.vmm, boot, ['--net', 'unix:' + path]) as machine:
            try:
                finish(machine)
            except Failed as failure:
                helper.kill()
                raise Failed(f'{failure}\npasst: {helper.stdout.read().decode(errors="replace")}') from failure
    finally:
        helper.kill()
        helper.wait()


def inside(options):
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + '/resolv.conf', 'w', encoding='ascii') as file:
            file.write('nameserver 127.0.0.1\n')
        for command in (f'mount --bind {folder}/resolv.conf {os.path.realpath("/etc/resolv.conf")}', 'ip link set lo up',
                        'ip link add d0 type veth peer name d1', 'ip addr add 198.51.100.2/24 dev d0', 'ip link set d1 up',
                        'ip link set d0 up',
                        'ip route add default via 198.51.100.1'):
            if subprocess.run(command.split(), stderr=subprocess.PIPE).returncode:
                print(f'skipped: "{command}" is not possible here')
                return SKIPPED
        dns_server()
        web_server()
        user(options, folder)
        passt(options, folder)
    print('ok')
    return 0


def main():
    parser = argparse.ArgumentParser(description='The network, with a Linux guest.')
    parser.add_argument('--vmm', required=True)
    options = parser.parse_args()
    if os.environ.get(INSIDE):
        try:
            return inside(options)
        except Failed as failure:
            print(f'FAILED: {failure}')
            return 1
    unshare = ['unshare', '--mount', '--net'] + ([] if os.getuid() == 0 else ['--user', '--map-root-user'])
    if subprocess.run(unshare + ['true'], stderr=subprocess.DEVNULL).returncode:
        print('skipped: no namespaces here')
        return SKIPPED
    with tempfile.TemporaryDirectory() as folder:
        files(folder, '')  # what has to be fetched needs the network that we have now
    return subprocess.run(unshare + [sys.executable, os.path.abspath(__file__), *sys.argv[1:]],
                          env={**os.environ, INSIDE: '1'}).returncode


if __name__ == '__main__':
    sys.exit(main())
