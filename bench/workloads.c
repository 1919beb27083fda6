/*
 * The benchmark's workloads, in one static program that runs natively and in guests alike.
 *
 *	workloads [--time MS] [--only NAME,...] [--list]
 *
 * Each workload is a function that does its unit of work n times and returns a checksum of the last unit, which does
 * not depend on n. It is run with growing n until a run takes MS milliseconds, then twice more; the best counts. One
 * line each:
 *
 *	BENCH name class iterations nanoseconds checksum
 *
 * The ratio of two machines is that of their nanoseconds per iteration. "scaling" is the exception: see there.
 */
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

static const char *self_path;

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Keeps the compiler from knowing a value, or that memory was not touched. */
#define OPAQUE(x) __asm__ volatile("" : "+r"(x) : : "memory")

static uint64_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return *state >> 33;
}

static void fail(const char *what)
{
	fprintf(stderr, "workloads: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Integer and memory. */

static uint64_t sieve(uint64_t n)
{
	static uint8_t composite[32768];
	uint64_t count = 0;

	while (n--) {
		memset(composite, 0, sizeof(composite));
		count = 0;
		for (unsigned i = 2; i < sizeof(composite); i++) {
			if (composite[i])
				continue;
			count++;
			for (unsigned j = i * 2; j < sizeof(composite); j += i)
				composite[j] = 1;
		}
	}
	return count;
}

static const uint32_t sha_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate_right(uint32_t value, unsigned by)
{
	return value >> by | value << (32 - by);
}

static void sha_block(uint32_t h[8], const uint8_t *data)
{
	uint32_t w[64], v[8];

	for (unsigned i = 0; i < 16; i++)
		w[i] = (uint32_t)data[4 * i] << 24 | (uint32_t)data[4 * i + 1] << 16 | (uint32_t)data[4 * i + 2] << 8 |
		       data[4 * i + 3];
	for (unsigned i = 16; i < 64; i++) {
		uint32_t a = w[i - 15], b = w[i - 2];
		w[i] = w[i - 16] + w[i - 7] + (rotate_right(a, 7) ^ rotate_right(a, 18) ^ a >> 3) +
		       (rotate_right(b, 17) ^ rotate_right(b, 19) ^ b >> 10);
	}
	memcpy(v, h, sizeof(v));
	for (unsigned i = 0; i < 64; i++) {
		uint32_t t1 = v[7] + (rotate_right(v[4], 6) ^ rotate_right(v[4], 11) ^ rotate_right(v[4], 25)) +
		              ((v[4] & v[5]) ^ (~v[4] & v[6])) + sha_k[i] + w[i];
		uint32_t t2 = (rotate_right(v[0], 2) ^ rotate_right(v[0], 13) ^ rotate_right(v[0], 22)) +
		              ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
		memmove(v + 1, v, 7 * sizeof(v[0]));
		v[4] += t1;
		v[0] = t1 + t2;
	}
	for (unsigned i = 0; i < 8; i++)
		h[i] += v[i];
}

static uint64_t sha(uint64_t n)
{
	static uint8_t data[4096];
	uint32_t h[8] = {0};

	while (n--) {
		for (unsigned i = 0; i < 8; i++)
			h[i] = sha_k[i] * 3;
		for (unsigned i = 0; i < sizeof(data); i += 64)
			sha_block(h, data + i);
	}
	return h[0] ^ h[7];
}

/* Compression in the manner of LZ77: hash of three bytes, longest match at its last place. */
static uint64_t lz(uint64_t n)
{
	static uint8_t text[8192], out[sizeof(text) * 2];
	static uint16_t head[4096];
	uint64_t state = 1, length = 0;

	for (unsigned i = 0; i < sizeof(text); i++)
		text[i] = i > 64 && next_random(&state) % 8 ? text[i - 1 - next_random(&state) % 48 % i]
		                                            : (uint8_t)('a' + next_random(&state) % 26);
	while (n--) {
		memset(head, 0, sizeof(head));
		length = 0;
		for (unsigned at = 0; at + 3 < sizeof(text);) {
			unsigned hash = (text[at] * 2654435761u ^ text[at + 1] * 40503u ^ text[at + 2] * 97u) & 4095;
			unsigned from = head[hash], match = 0;
			head[hash] = (uint16_t)at;
			if (from < at)
				while (at + match < sizeof(text) && match < 255 &&
				       text[from + match] == text[at + match])
					match++;
			if (match > 3) {
				out[length++] = 0xff;
				out[length++] = (uint8_t)match;
				out[length++] = (uint8_t)(at - from);
				at += match;
			} else {
				out[length++] = text[at++];
			}
		}
	}
	return length + out[length / 2];
}

static int compare_ints(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return (x > y) - (x < y);
}

static uint64_t sort(uint64_t n)
{
	static int values[1024];

	while (n--) {
		uint64_t state = 5;
		for (unsigned i = 0; i < 1024; i++)
			values[i] = (int)next_random(&state);
		qsort(values, 1024, sizeof(values[0]), compare_ints);
	}
	return (uint64_t)values[100];
}

struct node {
	struct node *child[2];
	uint64_t key;
};

static uint64_t tree(uint64_t n)
{
	static struct node nodes[1024];
	uint64_t found = 0;

	while (n--) {
		uint64_t state = 9;
		struct node *root = NULL;
		for (unsigned i = 0; i < 1024; i++) {
			struct node **at = &root;
			nodes[i] = (struct node){.key = next_random(&state) % 4096};
			while (*at)
				at = &(*at)->child[(*at)->key < nodes[i].key];
			*at = &nodes[i];
		}
		found = 0;
		for (uint64_t key = 0; key < 4096; key += 3) {
			struct node *at = root;
			while (at && at->key != key)
				at = at->child[at->key < key];
			found += at != NULL;
		}
	}
	return found;
}

static uint64_t memory_sum(uint64_t n)
{
	static uint64_t data[128 * 1024];
	uint64_t sum = 0;

	for (unsigned i = 0; i < 128 * 1024; i++)
		data[i] = i * 3;
	while (n--) {
		sum = 0;
		for (unsigned i = 0; i < 128 * 1024; i += 4) {
			sum += data[i] ^ data[i + 1];
			data[i + 2] = sum & 1 ? data[i + 2] : data[i + 2] | 1;
		}
	}
	return sum;
}

/* Control flow. */

static uint64_t branches(uint64_t n)
{
	static uint8_t input[4096];
	uint64_t state = 3, counts[4] = {0};

	for (unsigned i = 0; i < sizeof(input); i++)
		input[i] = (uint8_t)next_random(&state);
	while (n--) {
		unsigned mode = 0;
		memset(counts, 0, sizeof(counts));
		for (unsigned i = 0; i < sizeof(input); i++) {
			unsigned c = input[i];
			OPAQUE(c);
			if (c < 32)
				mode = mode == 1 ? 0 : 1;
			else if (c < 96 && mode)
				counts[0]++;
			else if (c & 1)
				counts[1] += c > 128 ? 2 : 1;
			else if (c % 7 == 3)
				mode = 2;
			else if (mode == 2)
				counts[2]++, mode = 0;
			else
				counts[3]++;
		}
	}
	return counts[0] + counts[1] * 3 + counts[2] * 5 + counts[3] * 7;
}

static NOINLINE uint64_t fibonacci(unsigned n)
{
	return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static uint64_t calls(uint64_t n)
{
	uint64_t value = 0;

	while (n--) {
		unsigned argument = 16;
		OPAQUE(argument);
		value = fibonacci(argument);
	}
	return value;
}

static NOINLINE uint64_t step_add(uint64_t x)
{
	return x + 3;
}
static NOINLINE uint64_t step_multiply(uint64_t x)
{
	return x * 5;
}
static NOINLINE uint64_t step_rotate(uint64_t x)
{
	return x << 7 | x >> 57;
}
static NOINLINE uint64_t step_mix(uint64_t x)
{
	return x ^ x >> 11;
}

static uint64_t indirect_calls(uint64_t n)
{
	uint64_t (*const steps[4])(uint64_t) = {step_add, step_multiply, step_rotate, step_mix};
	uint64_t x = 1;

	while (n--) {
		x = 1;
		for (unsigned i = 0; i < 1000; i++) {
			uint64_t (*step)(uint64_t) = steps[(i * 7 ^ x) & 3];
			OPAQUE(step);
			x = step(x);
		}
	}
	return x;
}

/* Bytecode by a jump table, as interpreted languages do. */
static uint64_t bytecode(uint64_t n)
{
	static const uint8_t code[] = {0, 1, 2, 3, 1, 4, 2, 5, 0, 3, 4, 1, 6};
	uint64_t a = 0, b = 0;

	while (n--) {
		a = 1;
		b = 100;
		for (const uint8_t *pc = code;;) {
			unsigned op = *pc++;
			OPAQUE(op);
			switch (op) {
			case 0:
				a += b;
				continue;
			case 1:
				a ^= a << 3;
				continue;
			case 2:
				b += 7 + (a & 1);
				continue;
			case 3:
				a = a >> 5 | a << 59;
				continue;
			case 4:
				a *= 0x9e3779b97f4a7c15u;
				continue;
			case 5:
				b ^= a & 0xff;
				continue;
			}
			if (b > 1000)
				break;
			pc = code;
		}
	}
	return a;
}

/* Floating point. */

static uint64_t scalar_double(uint64_t n)
{
	uint64_t inside = 0;

	while (n--) {
		inside = 0;
		for (unsigned p = 0; p < 64; p++) {
			double cx = (double)(p & 7) / 4 - 1.5, cy = (double)(p >> 3) / 4 - 1, x = 0, y = 0;
			for (unsigned i = 0; i < 50; i++, inside++) {
				double xx = x * x, yy = y * y;
				if (xx + yy > 4)
					break;
				y = 2 * x * y + cy;
				x = xx - yy + cx;
			}
		}
		OPAQUE(inside);
	}
	return inside;
}

static uint64_t x87(uint64_t n)
{
	uint64_t inside = 0;

	while (n--) {
		inside = 0;
		for (unsigned p = 0; p < 64; p++) {
			long double cx = (long double)(p & 7) / 4 - 1.5L, cy = (long double)(p >> 3) / 4 - 1, x = 0,
			            y = 0;
			for (unsigned i = 0; i < 50; i++, inside++) {
				long double xx = x * x, yy = y * y;
				if (xx + yy > 4)
					break;
				y = 2 * x * y + cy;
				x = xx - yy + cx;
			}
		}
		OPAQUE(inside);
	}
	return inside;
}

static uint64_t matrix(uint64_t n)
{
	static double a[24][24], b[24][24], c[24][24];

	for (unsigned i = 0; i < 24; i++)
		for (unsigned j = 0; j < 24; j++)
			a[i][j] = i + 2 * j, b[i][j] = i * j + 1;
	while (n--)
		for (unsigned i = 0; i < 24; i++)
			for (unsigned j = 0; j < 24; j++) {
				double sum = 0;
				for (unsigned k = 0; k < 24; k++)
					sum += a[i][k] * b[k][j];
				c[i][j] = sum;
			}
	return (uint64_t)c[7][11];
}

static uint64_t sse_compute(uint64_t n)
{
	__m128 x = _mm_set1_ps(0);

	while (n--) {
		__m128 c = _mm_setr_ps(0.1f, 0.2f, 0.3f, 0.4f), one = _mm_set1_ps(1);
		x = c;
		for (unsigned i = 0; i < 1000; i++) {
			x = _mm_add_ps(_mm_mul_ps(x, _mm_sub_ps(one, x)), c);
			x = _mm_min_ps(_mm_max_ps(x, c), one);
		}
	}
	return (uint64_t)(_mm_cvtss_f32(x) * 1000);
}

static uint64_t sse_stream(uint64_t n)
{
	static uint8_t data[16384] __attribute__((aligned(16))), other[sizeof(data)] __attribute__((aligned(16)));
	__m128i sum = _mm_setzero_si128();

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)i, other[i] = (uint8_t)(i * 3);
	while (n--) {
		sum = _mm_setzero_si128();
		for (unsigned i = 0; i < sizeof(data); i += 16) {
			__m128i a = _mm_load_si128((const void *)(data + i)),
			        b = _mm_load_si128((const void *)(other + i));
			sum = _mm_add_epi64(sum, _mm_sad_epu8(a, b));
			_mm_store_si128((void *)(other + i), _mm_avg_epu8(b, b));
		}
	}
	return (uint64_t)_mm_cvtsi128_si64(sum);
}

__attribute__((target("avx2"))) static uint64_t avx2_compute(uint64_t n)
{
	__m256i x = _mm256_setzero_si256();

	while (n--) {
		x = _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8);
		for (unsigned i = 0; i < 1000; i++) {
			x = _mm256_add_epi32(_mm256_mullo_epi32(x, _mm256_set1_epi32(1664525)),
			                     _mm256_set1_epi32(1013904223));
			x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 9));
			x = _mm256_permute4x64_epi64(x, 0x39);
		}
	}
	return (uint32_t)_mm256_extract_epi32(x, 3);
}

__attribute__((target("avx2"))) static uint64_t avx2_stream(uint64_t n)
{
	static float a[4096] __attribute__((aligned(32))), b[4096] __attribute__((aligned(32)));
	__m256 k = _mm256_set1_ps(0.5f);

	for (unsigned i = 0; i < 4096; i++)
		a[i] = (float)i, b[i] = 1;
	while (n--)
		for (unsigned i = 0; i < 4096; i += 8)
			_mm256_store_ps(b + i, _mm256_add_ps(_mm256_mul_ps(_mm256_load_ps(a + i), k), k));
	return (uint64_t)b[4000];
}

static bool has_avx2(void)
{
	return __builtin_cpu_supports("avx2");
}

/* Strings and copies. */

static uint8_t source[1 << 20], target[1 << 20];

static uint64_t copy_with(uint64_t n, size_t length, void *(*copy)(void *, const void *, size_t))
{
	for (unsigned i = 0; i < length; i += 64)
		source[i] = (uint8_t)(i >> 6);
	while (n--) {
		void *(*function)(void *, const void *, size_t) = copy;
		OPAQUE(function);
		function(target, source, length);
	}
	return target[length / 2 & ~63u];
}

static void *rep_movsb(void *to, const void *from, size_t length)
{
	void *at = to;

	__asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(length) : : "memory");
	return to;
}

static uint64_t movsb_64(uint64_t n)
{
	return copy_with(n, 64, rep_movsb);
}
static uint64_t movsb_4k(uint64_t n)
{
	return copy_with(n, 4096, rep_movsb);
}
static uint64_t movsb_1m(uint64_t n)
{
	return copy_with(n, 1 << 20, rep_movsb);
}
static uint64_t memcpy_64(uint64_t n)
{
	return copy_with(n, 64, memcpy);
}
static uint64_t memcpy_4k(uint64_t n)
{
	return copy_with(n, 4096, memcpy);
}
static uint64_t memcpy_1m(uint64_t n)
{
	return copy_with(n, 1 << 20, memcpy);
}
static uint64_t stosb_4k(uint64_t n)
{
	while (n--) {
		void *to = target;
		size_t length = 4096;
		__asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(7) : "memory");
	}
	return target[4095];
}
static uint64_t strings(uint64_t n)
{
	char a[200], b[200];
	uint64_t sum = 0;

	while (n--) {
		memset(a, 'x', sizeof(a));
		a[150] = 0;
		OPAQUE(n);
		strcpy(b, a);
		sum = strlen(b) + (uint64_t)(strchr(b, 'y') == NULL) + (uint64_t)(strcmp(a, b) == 0);
	}
	return sum;
}

/* System calls. */

static uint64_t null_call(uint64_t n)
{
	while (n--)
		syscall(SYS_getppid);
	return 0;
}

static uint64_t stat_call(uint64_t n)
{
	struct stat s = {0};

	while (n--)
		if (stat("/", &s) < 0)
			fail("stat");
	return s.st_mode & S_IFMT;
}

static uint64_t read_call(uint64_t n)
{
	char buffer[512];
	ssize_t got = 0;
	int fd = open(self_path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		fail(self_path);
	while (n--)
		got = pread(fd, buffer, sizeof(buffer), 0);
	close(fd);
	return (uint64_t)got;
}

static uint64_t open_call(uint64_t n)
{
	while (n--) {
		int fd = open(self_path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			fail(self_path);
		close(fd);
	}
	return 0;
}

static volatile sig_atomic_t signals_seen;

static void signal_handler(int number)
{
	signals_seen = number;
}

static uint64_t signal_call(uint64_t n)
{
	signal(SIGUSR1, signal_handler);
	while (n--)
		raise(SIGUSR1);
	return (uint64_t)signals_seen;
}

/* Processes and memory. */

static uint64_t fork_wait(uint64_t n)
{
	int status = 0;

	while (n--) {
		pid_t child = fork();
		if (child == 0)
			_exit(3);
		if (child < 0 || waitpid(child, &status, 0) < 0)
			fail("fork");
	}
	return (uint64_t)WEXITSTATUS(status);
}

static uint64_t exec_wait(uint64_t n)
{
	int status = 0;

	while (n--) {
		pid_t child = vfork();
		if (child == 0) {
			execl(self_path, self_path, "--leave", (char *)NULL);
			_exit(127);
		}
		if (child < 0 || waitpid(child, &status, 0) < 0 || WEXITSTATUS(status) != 5)
			fail("exec");
	}
	return (uint64_t)WEXITSTATUS(status);
}

static uint64_t page_faults(uint64_t n)
{
	while (n) {
		unsigned pages = n < 256 ? (unsigned)n : 256;
		uint8_t *at = mmap(NULL, pages * 4096ul, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (at == MAP_FAILED)
			fail("mmap");
		madvise(at, pages * 4096ul, MADV_NOHUGEPAGE);
		for (unsigned i = 0; i < pages; i++)
			at[i * 4096ul] = 1;
		munmap(at, pages * 4096ul);
		n -= pages;
	}
	return 0;
}

static uint64_t map_unmap(uint64_t n)
{
	while (n--) {
		void *at = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (at == MAP_FAILED)
			fail("mmap");
		*(volatile char *)at = 1;
		munmap(at, 65536);
	}
	return 0;
}

static uint64_t pipe_self(uint64_t n)
{
	int ends[2];
	char byte = 9;

	if (pipe(ends) < 0)
		fail("pipe");
	while (n--)
		if (write(ends[1], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1)
			fail("pipe");
	close(ends[0]);
	close(ends[1]);
	return (uint64_t)byte;
}

/* Two processes on one CPU hand a byte to and fro. */
static uint64_t context_switch(uint64_t n)
{
	int there[2], back[2];
	char byte = 7;
	cpu_set_t old, one;

	if (pipe(there) < 0 || pipe(back) < 0)
		fail("pipe");
	sched_getaffinity(0, sizeof(old), &old);
	CPU_ZERO(&one);
	for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &old)) {
			CPU_SET(cpu, &one);
			break;
		}
	sched_setaffinity(0, sizeof(one), &one);
	pid_t child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		close(there[1]);
		while (read(there[0], &byte, 1) == 1)
			if (write(back[1], &byte, 1) != 1)
				break;
		_exit(0);
	}
	close(there[0]);
	while (n--)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			fail("pipe");
	close(there[1]);
	close(back[0]);
	close(back[1]);
	waitpid(child, NULL, 0);
	sched_setaffinity(0, sizeof(old), &old);
	return (uint64_t)byte;
}

static const struct workload {
	const char *name, *class;
	uint64_t (*run)(uint64_t n);
	bool (*possible)(void); /* NULL: always */
} workloads[] = {
    {"sieve", "compute", sieve},
    {"sha", "compute", sha},
    {"lz", "compute", lz},
    {"sort", "compute", sort},
    {"tree", "compute", tree},
    {"memory", "compute", memory_sum},
    {"branches", "compute", branches},
    {"calls", "compute", calls},
    {"indirect", "compute", indirect_calls},
    {"bytecode", "compute", bytecode},
    {"double", "floating", scalar_double},
    {"x87", "floating", x87},
    {"matrix", "floating", matrix},
    {"sse", "floating", sse_compute},
    {"sse-stream", "floating", sse_stream},
    {"avx2", "floating", avx2_compute, has_avx2},
    {"avx2-stream", "floating", avx2_stream, has_avx2},
    {"movsb-64", "strings", movsb_64},
    {"movsb-4k", "strings", movsb_4k},
    {"movsb-1m", "strings", movsb_1m},
    {"memcpy-64", "strings", memcpy_64},
    {"memcpy-4k", "strings", memcpy_4k},
    {"memcpy-1m", "strings", memcpy_1m},
    {"stosb-4k", "strings", stosb_4k},
    {"strings", "strings", strings},
    {"syscall", "syscalls", null_call},
    {"stat", "syscalls", stat_call},
    {"read", "syscalls", read_call},
    {"open", "syscalls", open_call},
    {"signal", "syscalls", signal_call},
    {"fork", "process", fork_wait},
    {"exec", "process", exec_wait},
    {"page-fault", "process", page_faults},
    {"mmap", "process", map_unmap},
    {"pipe", "switch", pipe_self},
    {"switch", "switch", context_switch},
};

static void measure(const struct workload *w, uint64_t least)
{
	uint64_t n = 1, best = UINT64_MAX, checksum = 0;

	for (;;) {
		uint64_t start = now();
		checksum = w->run(n);
		best = now() - start;
		if (best >= least || n >= 1ull << 32)
			break;
		/* Towards the goal, with a margin, and by at most 16 at once: the first runs are not typical. */
		uint64_t factor = best ? least * 5 / 4 / best + 1 : 16;
		n *= factor < 2 ? 2 : factor > 16 ? 16 : factor;
	}
	for (unsigned i = 0; i < 2; i++) {
		uint64_t start = now();
		w->run(n);
		uint64_t taken = now() - start;
		if (taken < best)
			best = taken;
	}
	printf("BENCH %s %s %llu %llu %llx\n", w->name, w->class, (unsigned long long)n, (unsigned long long)best,
	       (unsigned long long)checksum);
	fflush(stdout);
}

static uint64_t two_processes(uint64_t n)
{
	uint64_t start = now();

	for (unsigned i = 0; i < 2; i++) {
		pid_t child = fork();
		if (child < 0)
			fail("fork");
		if (child == 0) {
			sha(n);
			_exit(0);
		}
	}
	while (wait(NULL) > 0)
		;
	return now() - start;
}

/*
 * How much more two processes get done than one on as many CPUs as there are: "iterations" is 1, and the "nanoseconds"
 * are 1000 times the throughput of two over that of one. The best of three rounds each, as of the others: in the first one the second
 * CPU is cold, and one alone is as likely to be disturbed as two.
 */
static void measure_scaling(uint64_t least)
{
	uint64_t n = 1, alone, both = UINT64_MAX;

	for (;; n *= 2) {
		uint64_t start = now();
		sha(n);
		alone = now() - start;
		if (alone >= 4 * least)
			break;
	}
	for (unsigned i = 0; i < 3; i++) {
		uint64_t taken = two_processes(n), start = now();

		if (taken < both)
			both = taken;
		sha(n);
		taken = now() - start;
		if (taken < alone)
			alone = taken;
	}
	printf("BENCH scaling scaling 1 %llu 0\n", (unsigned long long)(2000 * alone / both));
}

static bool listed(const char *list, const char *name)
{
	size_t length = strlen(name);

	for (const char *at = list; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == 0))
			return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	uint64_t least = 50;
	const char *only = NULL;

	self_path = argv[0];
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--leave") == 0)
			return 5;
		if (strcmp(argv[i], "--time") == 0 && i + 1 < argc) {
			least = strtoull(argv[++i], NULL, 0);
		} else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
			only = argv[++i];
		} else if (strcmp(argv[i], "--list") == 0) {
			for (size_t w = 0; w < sizeof(workloads) / sizeof(workloads[0]); w++)
				printf("%s %s\n", workloads[w].name, workloads[w].class);
			return 0;
		} else {
			fprintf(stderr, "usage: workloads [--time MS] [--only NAME,...] [--list]\n");
			return 2;
		}
	}
	least *= 1000000;
	for (size_t w = 0; w < sizeof(workloads) / sizeof(workloads[0]); w++)
		if ((!only || listed(only, workloads[w].name)) && (!workloads[w].possible || workloads[w].possible()))
			measure(&workloads[w], least);
	if (sysconf(_SC_NPROCESSORS_ONLN) > 1 && (!only || listed(only, "scaling")))
		measure_scaling(least);
	return 0;
}
