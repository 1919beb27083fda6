# Real programs, timed one by one: `sh programs.sh REPEAT`, in a Debian with them (bench/debian). Prints "@@P NAME SECONDS CHECK CPU FIRST" for each.
# As a guest's init it is read from the second disk; natively in a chroot of the same files.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C TERM=dumb HOME=/root PYTHONHASHSEED=0
if [ $$ = 1 ]; then
	mount -t proc proc /proc 2>/dev/null
	mount -t sysfs sys /sys 2>/dev/null
	repeat=$(sed -n 's/.*bench.repeat=\([0-9]*\).*/\1/p' /proc/cmdline)
	echo @@START@@
fi
repeat=${1:-${repeat:-1}}
# Data lies on the disk, as it does in life.
work=/var/tmp/programs
rm -rf $work && mkdir -p $work && cd $work || exit 1

now() {
	date +%s.%N
}

# The children's processor time up to now, into `cpu`.
take_cpu() {
	times >$work/times
	cpu=$(awk 'NR == 2 { gsub(/s/, ""); split($1, u, "m"); split($2, s, "m"); print 60 * (u[1] + s[1]) + u[2] + s[2] }' $work/times)
}

# run NAME COMMAND: the best of some runs, and the first; the check is the output's; CPU is per run.
run() {
	best= check= first=
	take_cpu
	used=$cpu
	for _ in $(seq "$repeat"); do
		start=$(now)
		check=$(sh -c "$2" 2>&1 | cksum | cut -d' ' -f1)
		best=$(echo "$start $(now) ${best:-1e9}" | awk '{ t = $2 - $1; print t < $3 ? t : $3 }')
		first=${first:-$best}
	done
	take_cpu
	echo "@@P $1 $best $check $(echo "$used $cpu $repeat" | awk '{ print ($2 - $1) / $3 }') $first"
}

awk 'BEGIN { for (i = 0; i < 150; i++) {
	printf "struct s%d { int a[8]; double d; struct s%d *next; };\n", i, i
	printf "int f%d(struct s%d *s, int n) { int r = n; for (int i = 0; i < n; i++) { switch ((s->a[i & 7] + i) & 7) {\n", i, i
	for (j = 0; j < 8; j++) printf "case %d: r += s->a[%d] * %d; s->d += r / (%d.5 + i); break;\n", j, j, i + j, j + 1
	printf "} if (s->next && r & 1) r ^= f%d(s->next, n - 1); } return r; }\n", i } }' >source.c
cat >script.py <<'END'
import json, re
words = {}
for n in range(60000):
    word = 'w%d' % (n * 7919 % 5003)
    words[word] = words.get(word, 0) + n
text = json.dumps(words, sort_keys=True)
back = json.loads(text)
class Node:
    def __init__(self, key): self.key, self.left, self.right = key, None, None
def insert(node, key):
    while True:
        side = 'left' if key < node.key else 'right'
        if getattr(node, side) is None:
            setattr(node, side, Node(key)); return
        node = getattr(node, side)
root = Node(5000)
for n in range(10000): insert(root, n * 7919 % 10007)
print(sum(back.values()), len(re.findall(r'w\d*7"', text)))
END
cat >script.pl <<'END'
my (%count, $text);
for my $n (0 .. 200000) { my $word = "w" . ($n * 7919 % 5003); $count{$word} += $n; $text .= "$word "; }
my $found = 0; $found++ while $text =~ /\bw(\d)\d*\1\b/g;
my $sum = 0; $sum += $count{$_} for sort keys %count;
print "$sum $found ", join(",", (sort { $count{$a} <=> $count{$b} || $a cmp $b } keys %count)[0 .. 9]), "\n";
END
cat >script.sql <<'END'
CREATE TABLE t(a INTEGER PRIMARY KEY, b INTEGER, c TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000) INSERT INTO t SELECT i, i * 7919 % 10007, 'text' || i FROM n;
CREATE INDEX tb ON t(b);
SELECT b % 10, count(*), sum(a), max(c) FROM t GROUP BY b % 10;
SELECT count(*) FROM t x JOIN t y ON x.b = y.a;
END
cat >script.sh <<'END'
i=0; while [ $i -lt 300 ]; do i=$((i + 1)); x=$(echo $i | sed s/1/2/); /bin/true; done; echo $x
END
tar -cf data.tar --sort=name --mtime=@0 --owner=0 --group=0 -C /usr/lib/python3.11 . 2>/dev/null
head -c 12000000 data.tar >data
head -c 3000000 data.tar >small
sync

run cc 'gcc -O2 -c source.c -o source.o && size -A source.o | grep text'
run python 'python3 script.py'
run perl 'perl script.pl'
run sqlite 'rm -f db; sqlite3 db <script.sql'
run zstd 'zstd -q -6 -c data | zstd -dc | cksum'
run xz 'xz -1 -c small | xz -dc | cksum'
run openssl 'openssl dgst -sha256 data; openssl enc -aes-256-cbc -K 00 -iv 00 -in data 2>/dev/null | openssl dgst -sha512; openssl prime -generate -bits 16 >/dev/null'
run tar 'rm -rf tree; mkdir tree; tar -xf data.tar -C tree 2>/dev/null; find tree | wc -l'
run fork 'sh script.sh'
run fsync 'dd if=/dev/zero of=out bs=4k count=100 oflag=dsync status=none; cksum <out'
run reads 'for f in data data.tar; do dd of=$f oflag=nocache conv=notrunc,fdatasync count=0 status=none; dd if=$f bs=64k status=none | cksum; done'
cd / && rm -rf $work
echo @@DONE@@
if [ $$ = 1 ]; then
	mount -o remount,ro / 2>/dev/null
	echo o >/proc/sysrq-trigger
	sleep 100
fi
