/*
 * Random programs on the host CPU, in a child process that may only read, write, return from signals and end.
 *
 * The child never leaves signal context while a program runs: each exception enters the handler, which notes it and
 * returns to where the program goes on (as native.c does with single instructions).
 */
#include <cpuid.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <unistd.h>

#include "program.h"

#define ALTERNATE_STACK 65536u
#define XSAVE_MAX       16384u
#define HANG_MS         20000

struct shared {
	struct program program;
	struct program_result result;
};

struct program_native {
	struct shared *shared;
	pid_t child;
	int to_child, from_child;
};

static const int gregs[GPR_COUNT] = {
    [RAX] = REG_RAX, [RCX] = REG_RCX, [RDX] = REG_RDX, [RBX] = REG_RBX, [RSP] = REG_RSP, [RBP] = REG_RBP,
    [RSI] = REG_RSI, [RDI] = REG_RDI, [R8] = REG_R8,   [R9] = REG_R9,   [R10] = REG_R10, [R11] = REG_R11,
    [R12] = REG_R12, [R13] = REG_R13, [R14] = REG_R14, [R15] = REG_R15,
};

/* The child's own; the handler finds it here. */
static struct child {
	struct shared *shared;
	uint8_t *pages; /* all windows, always writable */
	uint32_t avx_offset, xsave_size;
	bool running;
	gregset_t home;
	uint8_t home_xsave[XSAVE_MAX];
} child;

static void load(ucontext_t *context)
{
	const struct program *program = &child.shared->program;
	greg_t *g = context->uc_mcontext.gregs;
	uint8_t *x = (uint8_t *)context->uc_mcontext.fpregs;
	uint64_t header[8] = {XSTATE_X87 | XSTATE_SSE | (child.avx_offset ? XSTATE_AVX : 0)};
	const struct x87_state x87 = {.fcw = 0x37f};

	memcpy(child.home, g, sizeof(child.home));
	memcpy(child.home_xsave, x, child.xsave_size);
	memcpy(child.pages, program->memory, sizeof(program->memory));
	for (unsigned i = 0; i < GPR_COUNT; i++)
		g[gregs[i]] = (greg_t)program->gpr[i];
	g[REG_RIP] = PROGRAM_CODE;
	g[REG_EFL] = (greg_t)program->rflags;
	g[REG_CSGSFS] = program->bits == 64 ? 0x33 | 0x2bll << 48 : 0x23 | 0x2bll << 48;
	context->uc_flags |= 6; /* UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS */
	memcpy(x, &x87, sizeof(x87));
	memcpy(x + 24, &program->vector.mxcsr, 4);
	for (unsigned i = 0; i < 16; i++) {
		memcpy(x + 160 + 16 * i, program->vector.zmm[i], 16);
		if (child.avx_offset)
			memcpy(x + child.avx_offset + 16 * i, program->vector.zmm[i] + 16, 16);
	}
	memcpy(x + 512, header, sizeof(header));
}

static void capture(const ucontext_t *context)
{
	struct program_result *result = &child.shared->result;
	const greg_t *g = context->uc_mcontext.gregs;
	const uint8_t *x = (const uint8_t *)context->uc_mcontext.fpregs;
	uint64_t present;

	for (unsigned i = 0; i < GPR_COUNT; i++)
		result->gpr[i] = (uint64_t)g[gregs[i]];
	result->rip = (uint64_t)g[REG_RIP];
	result->rflags = (uint64_t)g[REG_EFL];
	memcpy(&present, x + 512, 8);
	result->x87 = (struct x87_state){.fcw = 0x37f};
	if (present & XSTATE_X87)
		memcpy(&result->x87, x, sizeof(result->x87));
	memset(&result->vector, 0, sizeof(result->vector));
	memcpy(&result->vector.mxcsr, x + 24, 4);
	for (unsigned i = 0; i < 16; i++) {
		if (present & XSTATE_SSE)
			memcpy(result->vector.zmm[i], x + 160 + 16 * i, 16);
		if (child.avx_offset && (present & XSTATE_AVX))
			memcpy(result->vector.zmm[i] + 16, x + child.avx_offset + 16 * i, 16);
	}
	memcpy(result->memory, child.pages, sizeof(result->memory));
}

static void handler(int signal, siginfo_t *info, void *argument)
{
	ucontext_t *context = argument;
	greg_t *g = context->uc_mcontext.gregs;
	struct program_result *result = &child.shared->result;
	uint64_t gpr[GPR_COUNT];

	if (!child.running) {
		if (signal != SIGILL)
			_exit(3);
		load(context);
		child.home[REG_RIP] += 2; /* over the UD2 */
		child.running = true;
		return;
	}
	for (unsigned i = 0; i < GPR_COUNT; i++)
		gpr[i] = (uint64_t)g[gregs[i]];
	uint64_t next = signal == SIGSYS
	                    ? 0
	                    : program_trapped(&child.shared->program, result, (unsigned)g[REG_TRAPNO],
	                                      (uint32_t)g[REG_ERR], (uint64_t)g[REG_CR2], (uint64_t)g[REG_RIP], gpr);
	if (next) {
		g[REG_RIP] = (greg_t)next;
		g[REG_EFL] = RESUME_FLAGS;
		return;
	}
	capture(context);
	memcpy(g, child.home, sizeof(child.home));
	memcpy(context->uc_mcontext.fpregs, child.home_xsave, child.xsave_size);
	child.running = false;
}

static bool map_windows(void)
{
	int fd = memfd_create("programs", MFD_CLOEXEC);
	off_t at = 0;

	if (fd < 0 || ftruncate(fd, PROGRAM_PAGES * 4096) < 0)
		return false;
	child.pages = mmap(NULL, PROGRAM_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (child.pages == MAP_FAILED)
		return false;
	for (unsigned i = 0; i < PROGRAM_WINDOWS; i++) {
		const struct program_window *window = &program_windows[i];
		int protection = PROT_READ | (window->writable ? PROT_WRITE : 0) | (window->executable ? PROT_EXEC : 0);
		void *linear = (void *)(uintptr_t)window->linear;
		size_t size = window->pages * 4096u;

		if (mmap(linear, size, protection, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, at) != linear)
			return false;
		mlock(linear,
		      size); /* a fault's error code says "present" because of our rights, never because of reclaim */
		at += (off_t)size;
	}
	close(fd);
	return true;
}

static bool set_handlers(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	stack_t stack = {.ss_size = ALTERNATE_STACK};

	stack.ss_sp = mmap(NULL, ALTERNATE_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL) < 0)
		return false;
	for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (sigaction(signals[i], &action, NULL) < 0)
			return false;
	return true;
}

static bool close_kernel(void)
{
	static const uint32_t allowed[] = {SYS_read, SYS_write, SYS_rt_sigreturn, SYS_exit_group};
	struct sock_filter code[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xc000003e, 0, 6), /* AUDIT_ARCH_X86_64 */
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[0], 3, 0),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[1], 2, 0),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[2], 1, 0),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[3], 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void find_xsave(void)
{
	unsigned eax, ebx, ecx, edx;

	if (!__get_cpuid_count(0xd, 0, &eax, &ebx, &ecx, &edx))
		_exit(5);
	child.xsave_size = ebx > XSAVE_MAX ? XSAVE_MAX : ebx;
	if (eax & XSTATE_AVX) {
		__cpuid_count(0xd, 2, eax, ebx, ecx, edx);
		child.avx_offset = ebx;
	}
}

static _Noreturn void child_main(struct shared *shared, int in, int out)
{
	char byte = 0;

	child.shared = shared;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 0);
	find_xsave();
	/* 32-bit programs need data segments; 64-bit ones do not mind. */
	__asm__ volatile("mov %0, %%ds; mov %0, %%es" ::"r"(0x2b));
	if (!map_windows() || !set_handlers() || !close_kernel() || write(out, &byte, 1) != 1)
		_exit(4);
	while (read(in, &byte, 1) == 1) {
		shared->result.ended = false;
		shared->result.trap_count = 0;
		__asm__ volatile("ud2" ::: "memory");
		if (write(out, &byte, 1) != 1)
			break;
	}
	_exit(0);
}

struct program_native *program_native_create(void)
{
	struct program_native *native = calloc(1, sizeof(*native));
	int to[2] = {-1, -1}, from[2] = {-1, -1};
	char byte;

	if (!native)
		return NULL;
	native->child = -1;
	native->to_child = native->from_child = -1;
	native->shared = mmap(NULL, sizeof(*native->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (native->shared == MAP_FAILED || pipe(to) < 0 || pipe(from) < 0)
		return NULL; /* the test ends: nothing is freed */
	native->child = fork();
	if (native->child == 0) {
		close(to[1]);
		close(from[0]);
		child_main(native->shared, to[0], from[1]);
	}
	close(to[0]);
	close(from[1]);
	native->to_child = to[1];
	native->from_child = from[0];
	if (native->child < 0 || read(from[0], &byte, 1) != 1) {
		program_native_destroy(native);
		errno = EIO;
		return NULL;
	}
	return native;
}

void program_native_destroy(struct program_native *native)
{
	close(native->to_child);
	close(native->from_child);
	if (native->child > 0) {
		kill(native->child, SIGKILL);
		waitpid(native->child, NULL, 0);
	}
	munmap(native->shared, sizeof(*native->shared));
	free(native);
}

struct program *program_native_program(struct program_native *native)
{
	return &native->shared->program;
}

const struct program_result *program_native_run(struct program_native *native)
{
	struct pollfd pollfd = {native->from_child, POLLIN, 0};
	char byte = 0;

	if (write(native->to_child, &byte, 1) != 1)
		return NULL;
	if (poll(&pollfd, 1, HANG_MS) != 1 || read(native->from_child, &byte, 1) != 1) {
		errno = EIO;
		return NULL;
	}
	return &native->shared->result;
}
