/*
 * What sensitive instructions cost natively, where user code may execute them. Prints lines as bench/sensitive.asm does, and
 * "TSC kilohertz".
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

#define COUNT  20000
#define ROUNDS 7

static uint8_t image[8192] __attribute__((aligned(64)));

#define TIMED(name, ...)                                                                                               \
	do {                                                                                                           \
		uint64_t best = UINT64_MAX;                                                                            \
		for (int round = 0; round < ROUNDS; round++) {                                                         \
			uint64_t start = __rdtsc();                                                                    \
			for (int i = 0; i < COUNT; i++)                                                                \
				__asm__ volatile(__VA_ARGS__);                                                         \
			uint64_t ticks = __rdtsc() - start;                                                            \
			best = ticks < best ? ticks : best;                                                            \
		}                                                                                                      \
		printf("BENCH %s sensitive %d %llu 0\n", name, COUNT, (unsigned long long)(best - empty));             \
	} while (0)

static uint64_t nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int main(void)
{
	uint64_t empty = 0, ns = nanoseconds(), tsc = __rdtsc();

	while (nanoseconds() - ns < 50000000)
		;
	printf("TSC %llu\n", (unsigned long long)((__rdtsc() - tsc) * 1000000 / (nanoseconds() - ns)));
	/* In the red zone's absence: the compiler has spilled nothing below RSP when main() is not a leaf. */
	TIMED("pushf-pop", "pushfq; pop %%rax" ::: "rax", "memory");
	TIMED("pushf-popf", "pushfq; popfq" ::: "cc", "memory");
	TIMED("rdtsc", "rdtsc" ::: "rax", "rdx");
	TIMED("rdtscp", "rdtscp" ::: "rax", "rcx", "rdx");
	TIMED("cpuid", "cpuid" ::"a"(0) : "rbx", "rcx", "rdx");
	TIMED("pause", "pause");
	TIMED("rdfsbase", "rdfsbase %%rax" ::: "rax");
	TIMED("fxsave", "fxsave64 %0" : "=m"(image));
	TIMED("fxrstor", "fxrstor64 %0" ::"m"(image));
	TIMED("xsave", "xsave64 %0" : "+m"(image) : "a"(3), "d"(0));
	TIMED("xrstor", "xrstor64 %0" ::"m"(image), "a"(3), "d"(0));
	/* getppid(): there and back, and what the kernel does. */
	TIMED("syscall-sysret", "mov $110, %%eax; syscall" ::: "rax", "rcx", "r11", "memory");
	return 0;
}
