/*
 * Cases on the host CPU.
 *
 * A child process maps the windows and waits for batches. Inside a batch it never leaves signal context: the exception
 * that ends one case enters the handler, which takes the case's registers out of the signal frame, puts the next case's
 * in, and returns; the kernel's sigreturn loads everything at once, x87 and vector registers included, also into 32- or
 * 16-bit code. So a case costs one exception and one system call.
 *
 * The child is guarded: after its start no system call is allowed but four, and these only from two instructions of
 * this file; a crash or a hang ends the child alone, the parent notes it for the case under way and forks another one.
 *
 * While a case runs, FS, GS, DS and ES are its own, so nothing that uses thread-local data may run before the assembly
 * entry has put them back.
 */
#include <asm/ldt.h>
#include <cpuid.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <unistd.h>

#include "isa.h"

#define ALTERNATE_STACK 65536u
#define XSAVE_MAX       8192u
#define HANG_MS         3000
#define HWCAP2_FSGSBASE 2u

/* Shared between the parent and the child. */
struct shared {
	_Atomic uint32_t current; /* the case under way */
	uint32_t first, count;
	struct isa_case test[ISA_BATCH];
	struct isa_outcome outcome[ISA_BATCH];
};

struct native_runner {
	struct shared *shared;
	pid_t child;
	int to_child, from_child;
	bool ldt, running;
};

/* ---- the child: entry from a case, return into the next ---- */

/* Read and written by the assembly below. One per process, and the child has one thread. */
uint64_t isa_home_fs, isa_next_fs, isa_next_gs;
uint16_t isa_next_selector[4]; /* DS, ES, FS, GS */
uint16_t isa_next_long;
uint32_t isa_next_flags; /* NT and ID */
void isa_handler_body(int signal, siginfo_t *info, void *context, uint64_t fs, uint64_t gs, uint64_t selectors);
void isa_handler(void);
void isa_restorer(void);
long isa_system_call(long number, long a, long b, long c);
extern const char isa_system_call_return[], isa_restorer_return[];

/* clang-format off */
__asm__(
	".text\n"
	"isa_handler:\n" /* rdi, rsi, rdx: the handler's arguments */
	"	pushfq\n"
	"	andl $~0x244000, (%rsp)\n" /* Linux leaves AC, NT and ID as they were */
	"	popfq\n"
	"	rdfsbase %rcx\n"
	"	rdgsbase %r8\n"
	"	xorl %r9d, %r9d\n"
	"	movl %gs, %r9d\n"
	"	shlq $16, %r9\n"
	"	movl %fs, %eax\n"
	"	movw %ax, %r9w\n"
	"	shlq $16, %r9\n"
	"	movl %es, %eax\n"
	"	movw %ax, %r9w\n"
	"	shlq $16, %r9\n"
	"	movl %ds, %eax\n"
	"	movw %ax, %r9w\n"
	"	xorl %eax, %eax\n"
	"	movl %eax, %fs\n"
	"	movl %eax, %gs\n"
	"	movq isa_home_fs(%rip), %rax\n"
	"	wrfsbase %rax\n"
	"	subq $8, %rsp\n"
	"	call isa_handler_body\n"
	"	addq $8, %rsp\n"
	"	movw isa_next_selector+0(%rip), %ds\n"
	"	movw isa_next_selector+2(%rip), %es\n"
	"	movw isa_next_selector+4(%rip), %fs\n"
	"	movw isa_next_selector+6(%rip), %gs\n"
	"	cmpw $0, isa_next_long(%rip)\n"
	"	je 1f\n"
	"	movq isa_next_fs(%rip), %rax\n"
	"	movq isa_next_gs(%rip), %rcx\n"
	"	wrfsbase %rax\n"
	"	wrgsbase %rcx\n"
	"1:	pushfq\n" /* sigreturn does not load NT and ID, but keeps what is there */
	"	movl isa_next_flags(%rip), %eax\n"
	"	orl %eax, (%rsp)\n"
	"	popfq\n"
	"	ret\n"
	"isa_restorer:\n"
	"	movl $15, %eax\n" /* rt_sigreturn */
	"	syscall\n"
	"isa_restorer_return:\n"
	"	ud2\n"
	"isa_system_call:\n"
	"	movq %rdi, %rax\n"
	"	movq %rsi, %rdi\n"
	"	movq %rdx, %rsi\n"
	"	movq %rcx, %rdx\n"
	"	syscall\n"
	"isa_system_call_return:\n"
	"	ret\n");
/* clang-format on */

static const int gregs[GPR_COUNT] = {
    [RAX] = REG_RAX, [RCX] = REG_RCX, [RDX] = REG_RDX, [RBX] = REG_RBX, [RSP] = REG_RSP, [RBP] = REG_RBP,
    [RSI] = REG_RSI, [RDI] = REG_RDI, [R8] = REG_R8,   [R9] = REG_R9,   [R10] = REG_R10, [R11] = REG_R11,
    [R12] = REG_R12, [R13] = REG_R13, [R14] = REG_R14, [R15] = REG_R15,
};

/* The child's own; the handler finds it here. */
static struct child {
	struct shared *shared;
	uint8_t *pages;  /* a second mapping of the windows, always writable */
	uint32_t xstate; /* components in use */
	uint32_t offset[8];
	bool in_case;
	/* Registers of the interrupted batch loop. */
	gregset_t home;
	uint8_t home_xsave[XSAVE_MAX];
	uint32_t home_xsave_size;
} child;

static void die(int status)
{
	isa_system_call(SYS_exit_group, status, 0, 0);
}

static void vector_from_xsave(struct vector_state *v, const uint8_t *x)
{
	uint64_t present;

	memcpy(&present, x + 512, 8);
	memset(v, 0, sizeof(*v));
	memcpy(&v->mxcsr, x + 24, 4);
	for (unsigned i = 0; i < 16; i++) {
		if (present & XSTATE_SSE)
			memcpy(v->zmm[i], x + 160 + 16 * i, 16);
		if (present & child.xstate & XSTATE_AVX)
			memcpy(v->zmm[i] + 16, x + child.offset[2] + 16 * i, 16);
		if (present & child.xstate & XSTATE_ZMM_HI256)
			memcpy(v->zmm[i] + 32, x + child.offset[6] + 32 * i, 32);
	}
	if (present & child.xstate & XSTATE_HI16_ZMM)
		memcpy(v->zmm[16], x + child.offset[7], 16 * 64);
	if (present & child.xstate & XSTATE_OPMASK)
		memcpy(v->opmask, x + child.offset[5], 64);
}

static void vector_to_xsave(const struct vector_state *v, uint8_t *x)
{
	memcpy(x + 24, &v->mxcsr, 4);
	for (unsigned i = 0; i < 16; i++) {
		memcpy(x + 160 + 16 * i, v->zmm[i], 16);
		if (child.xstate & XSTATE_AVX)
			memcpy(x + child.offset[2] + 16 * i, v->zmm[i] + 16, 16);
		if (child.xstate & XSTATE_ZMM_HI256)
			memcpy(x + child.offset[6] + 32 * i, v->zmm[i] + 32, 32);
	}
	if (child.xstate & XSTATE_HI16_ZMM)
		memcpy(x + child.offset[7], v->zmm[16], 16 * 64);
	if (child.xstate & XSTATE_OPMASK)
		memcpy(x + child.offset[5], v->opmask, 64);
}

static void x87_from_xsave(struct x87_state *x87, const uint8_t *x)
{
	uint64_t present;

	memcpy(&present, x + 512, 8);
	*x87 = (struct x87_state){.fcw = 0x37f};
	if (present & XSTATE_X87)
		memcpy(x87, x, sizeof(*x87));
	x87->unused_mxcsr = x87->unused_mxcsr_mask = 0;
	for (unsigned i = 0; i < 8; i++)
		memset(x87->st[i] + 10, 0, 6);
}

static void capture(int signal, const ucontext_t *context, uint64_t fs, uint64_t gs, uint64_t selectors)
{
	const greg_t *g = context->uc_mcontext.gregs;
	struct isa_outcome *outcome = &child.shared->outcome[child.shared->current];

	outcome->status = signal == SIGSYS ? STATUS_SYSTEM_CALL : STATUS_EXCEPTION;
	outcome->trap = (uint8_t)g[REG_TRAPNO];
	outcome->error = (uint32_t)g[REG_ERR];
	outcome->cr2 = (uint64_t)g[REG_CR2];
	outcome->rip = (uint64_t)g[REG_RIP];
	outcome->rflags = (uint64_t)g[REG_EFL];
	for (unsigned i = 0; i < GPR_COUNT; i++)
		outcome->gpr[i] = (uint64_t)g[gregs[i]];
	outcome->fs_base = fs;
	outcome->gs_base = gs;
	outcome->selector[SEG_CS] = (uint16_t)g[REG_CSGSFS];
	outcome->selector[SEG_SS] = (uint16_t)((uint64_t)g[REG_CSGSFS] >> 48);
	outcome->selector[SEG_DS] = (uint16_t)selectors;
	outcome->selector[SEG_ES] = (uint16_t)(selectors >> 16);
	outcome->selector[SEG_FS] = (uint16_t)(selectors >> 32);
	outcome->selector[SEG_GS] = (uint16_t)(selectors >> 48);
	x87_from_xsave(&outcome->x87, (const uint8_t *)context->uc_mcontext.fpregs);
	vector_from_xsave(&outcome->vector, (const uint8_t *)context->uc_mcontext.fpregs);
	outcome->changed = 0;
	for (unsigned page = 0; page < ISA_PAGES; page++) {
		uint8_t *now = child.pages + page * 4096;

		if (!memcmp(now, isa_background(page), 4096))
			continue;
		outcome->changed |= 1u << page;
		memcpy(outcome->page[page], now, 4096);
		memcpy(now, isa_background(page), 4096);
	}
}

static void load(ucontext_t *context, const struct isa_case *test)
{
	greg_t *g = context->uc_mcontext.gregs;
	uint8_t *xsave = (uint8_t *)context->uc_mcontext.fpregs;
	uint64_t header[8] = {child.xstate};

	for (unsigned i = 0; i < test->patch_count; i++)
		memcpy(child.pages + test->patch[i].page * 4096u + test->patch[i].offset,
		       test->pool + test->patch[i].pool, test->patch[i].length);
	for (unsigned i = 0; i < GPR_COUNT; i++)
		g[gregs[i]] = (greg_t)test->gpr[i];
	g[REG_RIP] = (greg_t)test->rip;
	g[REG_EFL] = (greg_t)test->rflags;
	g[REG_CSGSFS] = (greg_t)(test->selector[SEG_CS] | (uint64_t)test->selector[SEG_SS] << 48);
	context->uc_flags |= 6; /* UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS */
	memcpy(xsave, &test->x87, sizeof(test->x87));
	vector_to_xsave(&test->vector, xsave);
	memcpy(xsave + 512, header, sizeof(header));
	isa_next_selector[0] = test->selector[SEG_DS];
	isa_next_selector[1] = test->selector[SEG_ES];
	isa_next_selector[2] = test->selector[SEG_FS];
	isa_next_selector[3] = test->selector[SEG_GS];
	isa_next_long = test->mode == 64;
	isa_next_flags = (uint32_t)(test->rflags & (FLAG_NT | FLAG_ID));
	isa_next_fs = test->fs_base;
	isa_next_gs = test->gs_base;
}

static void go_home(ucontext_t *context)
{
	memcpy(context->uc_mcontext.gregs, child.home, sizeof(child.home));
	memcpy(context->uc_mcontext.fpregs, child.home_xsave, child.home_xsave_size);
	memset(isa_next_selector, 0, sizeof(isa_next_selector));
	isa_next_long = 1;
	isa_next_flags = 0;
	isa_next_fs = isa_home_fs;
	isa_next_gs = 0;
	child.in_case = false;
}

void isa_handler_body(int signal, siginfo_t *info, void *argument, uint64_t fs, uint64_t gs, uint64_t selectors)
{
	ucontext_t *context = argument;
	struct shared *shared = child.shared;

	if (!child.in_case) {
		if (signal != SIGILL)
			die(3); /* our own mistake */
		memcpy(child.home, context->uc_mcontext.gregs, sizeof(child.home));
		memcpy(child.home_xsave, context->uc_mcontext.fpregs, child.home_xsave_size);
		child.home[REG_RIP] += 2; /* over the UD2 */
		child.in_case = true;
	} else {
		capture(signal, context, fs, gs, selectors);
		atomic_fetch_add(&shared->current, 1);
	}
	if (shared->current < shared->count)
		load(context, &shared->test[shared->current]);
	else
		go_home(context);
}

/* ---- the child: start ---- */

static bool map_windows(void)
{
	int fd = memfd_create("isa-windows", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, ISA_PAGES * 4096) < 0)
		return false;
	child.pages = mmap(NULL, ISA_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (child.pages == MAP_FAILED)
		return false;
	for (unsigned page = 0; page < ISA_PAGES; page++) {
		const struct isa_window *window = &isa_windows[page];
		int protection = PROT_READ | (window->writable ? PROT_WRITE : 0) | (window->executable ? PROT_EXEC : 0);
		void *at = (void *)window->linear;

		memcpy(child.pages + page * 4096, isa_background(page), 4096);
		if (mmap(at, 4096, protection, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd,
		         (off_t)page * 4096) != at)
			return false;
		mlock(at, 4096); /* so that a fault's error code never says "not present" because of reclaim */
	}
	close(fd);
	return true;
}

static bool set_ldt(void)
{
	for (unsigned i = 0; i < ISA_LDT_COUNT; i++) {
		const struct isa_descriptor *descriptor = &isa_ldt[i];
		struct user_desc entry = {
		    .entry_number = i,
		    .base_addr = descriptor->base,
		    .limit = descriptor->limit,
		    .seg_32bit = descriptor->big,
		    .contents = descriptor->type >> 2 & 3,
		    .read_exec_only = !(descriptor->type & SEG_WRITABLE),
		    .limit_in_pages = descriptor->pages,
		    .seg_not_present = !descriptor->present,
		};

		if (descriptor->type && syscall(SYS_modify_ldt, 0x11, &entry, sizeof(entry)) < 0)
			return false;
	}
	return true;
}

struct kernel_sigaction {
	void (*handler)(void);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};

#define SA_RESTORER_FLAG 0x04000000ul

static bool set_handlers(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
	struct kernel_sigaction action = {
	    isa_handler,
	    SA_SIGINFO | SA_ONSTACK | SA_RESTORER_FLAG,
	    isa_restorer,
	    ~0ull,
	};
	stack_t stack = {.ss_size = ALTERNATE_STACK};

	stack.ss_sp = mmap(NULL, ALTERNATE_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL) < 0)
		return false;
	for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (syscall(SYS_rt_sigaction, signals[i], &action, NULL, 8) < 0)
			return false;
	return true;
}

/* From now on only the two SYSCALL instructions of this file enter the kernel; others give SIGSYS. */
static bool close_kernel(void)
{
	uint64_t a = (uint64_t)isa_system_call_return, b = (uint64_t)isa_restorer_return;
	struct sock_filter code[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 6),
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(a >> 32), 0, 4),
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)a, 1, 0),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)b, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

	if (a >> 32 != b >> 32)
		return false;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void find_xsave_layout(void)
{
	unsigned eax, ebx, ecx, edx;

	__cpuid_count(0xd, 0, eax, ebx, ecx, edx);
	child.xstate = eax & (XSTATE_X87 | XSTATE_SSE | XSTATE_AVX | XSTATE_AVX512);
	child.home_xsave_size = ebx > XSAVE_MAX ? XSAVE_MAX : ebx;
	for (unsigned i = 2; i < 8; i++) {
		__cpuid_count(0xd, i, eax, ebx, ecx, edx);
		child.offset[i] = ebx;
	}
}

static _Noreturn void child_main(struct shared *shared, int in, int out)
{
	char byte = 0;

	child.shared = shared;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 0);
	find_xsave_layout();
	__asm__ volatile("rdfsbase %0" : "=r"(isa_home_fs));
	if (!map_windows() || !set_handlers())
		_exit(4);
	byte = set_ldt() ? 'L' : 'N';
	if (!close_kernel())
		_exit(5);
	isa_system_call(SYS_write, out, (long)&byte, 1);
	while (isa_system_call(SYS_read, in, (long)&byte, 1) == 1) {
		shared->current = shared->first;
		if (shared->first < shared->count)
			__asm__ volatile("ud2" ::: "memory");
		isa_system_call(SYS_write, out, (long)&byte, 1);
	}
	die(0);
	__builtin_unreachable();
}

/* ---- the parent ---- */

static int start_child(struct native_runner *runner)
{
	int to[2], from[2];
	char byte;

	if (pipe(to) < 0)
		return -errno;
	if (pipe(from) < 0) {
		int error = -errno;

		close(to[0]);
		close(to[1]);
		return error;
	}
	fflush(NULL);
	runner->child = fork();
	if (runner->child == 0) {
		close(to[1]);
		close(from[0]);
		child_main(runner->shared, to[0], from[1]);
	}
	close(to[0]);
	close(from[1]);
	runner->to_child = to[1];
	runner->from_child = from[0];
	if (runner->child < 0 || read(from[0], &byte, 1) != 1)
		return -EIO;
	runner->ldt = byte == 'L';
	return 0;
}

static void stop_child(struct native_runner *runner, int *status)
{
	close(runner->to_child);
	close(runner->from_child);
	if (runner->child > 0) {
		kill(runner->child, SIGKILL);
		waitpid(runner->child, status, 0);
	}
	runner->child = -1;
}

struct native_runner *native_create_runner(void)
{
	struct native_runner *runner = calloc(1, sizeof(*runner));

	if (!runner)
		return NULL;
	if (!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE)) {
		free(runner);
		errno = ENOSYS;
		return NULL;
	}
	isa_background(0);
	runner->shared = mmap(NULL, sizeof(*runner->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (runner->shared == MAP_FAILED) {
		free(runner);
		return NULL;
	}
	int error = start_child(runner);
	if (error) {
		int status = 0;

		stop_child(runner, &status);
		munmap(runner->shared, sizeof(*runner->shared));
		free(runner);
		errno = -error;
		return NULL;
	}
	return runner;
}

void native_destroy_runner(struct native_runner *runner)
{
	int status;

	stop_child(runner, &status);
	munmap(runner->shared, sizeof(*runner->shared));
	free(runner);
}

struct isa_case *native_case(struct native_runner *runner, unsigned index)
{
	return &runner->shared->test[index];
}

struct isa_outcome *native_outcome(struct native_runner *runner, unsigned index)
{
	return &runner->shared->outcome[index];
}

bool native_has_ldt(struct native_runner *runner)
{
	return runner->ldt;
}

static int poke(struct native_runner *runner)
{
	return write(runner->to_child, "g", 1) == 1 ? 0 : -EPIPE;
}

int native_start(struct native_runner *runner, unsigned count)
{
	runner->shared->first = 0;
	runner->shared->current = 0;
	runner->shared->count = count;
	return poke(runner);
}

/* The child is gone or stuck: notes it for the case under way and starts another child for the rest. */
static int replace_child(struct native_runner *runner, bool hang)
{
	struct shared *shared = runner->shared;
	uint32_t current = shared->current;
	int status = 0;

	stop_child(runner, &status);
	if (current < shared->count) {
		struct isa_outcome *outcome = &shared->outcome[current];

		outcome->status = hang ? STATUS_HANG : STATUS_CRASH;
		snprintf(outcome->text, sizeof(outcome->text), "child %s, wait status %#x", hang ? "hung" : "died",
		         status);
	}
	shared->first = current + 1;
	shared->current = current + 1;
	int error = start_child(runner);
	return error ? error : poke(runner);
}

int native_wait(struct native_runner *runner)
{
	for (;;) {
		uint32_t before = runner->shared->current;
		struct pollfd pollfd = {runner->from_child, POLLIN, 0};
		int ready = poll(&pollfd, 1, HANG_MS);
		char byte;

		if (ready > 0 && read(runner->from_child, &byte, 1) == 1)
			return 0;
		if (ready < 0 && errno == EINTR)
			continue;
		if (ready == 0 && runner->shared->current != before)
			continue;
		int error = replace_child(runner, ready == 0);
		if (error)
			return error;
	}
}
