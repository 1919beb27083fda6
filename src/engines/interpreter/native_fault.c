/*
 * The host's signals inside forms, turned into the guest's exceptions.
 *
 * The handler does nothing but change the interrupted context: execution goes on in fault_landing(), on the vCPU's
 * normal stack, and the kernel puts back all registers on the way, which is how the guest's live x87 registers survive.
 * Signals from elsewhere go to the handler that was there before ours.
 *
 * A signal's disposition belongs to the process and its handler gets no pointer of ours, hence the static variables
 * here: what was installed before, and the thread's running vCPU.
 */
#include "engines/interpreter/native_private.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "engines/translator/translator.h"
#include "x86/exceptions.h"

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
#define SIGNALS (sizeof signals / sizeof *signals)

static struct sigaction previous[SIGNALS];
static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static bool installed;
static _Thread_local struct native *volatile running;
static _Thread_local _Alignas(16) uint8_t signal_stack[32768];

static _Noreturn void fault_landing(struct vcpu *vcpu, unsigned vector)
{
	x86_raise(vcpu, vector);
}

/* The guest's vector for a host fault, or -1 when no instruction of a guest can cause that. */
static int guest_vector(const struct vcpu *vcpu, unsigned trap)
{
	switch (trap) {
	case VECTOR_DE:
	case VECTOR_UD:
	case VECTOR_GP:
	case VECTOR_MF:
	case VECTOR_AC:
		return (int)trap;
	case VECTOR_XM:
		return vcpu->state.cr4 & CR4_OSXMMEXCPT ? VECTOR_XM : VECTOR_UD;
	default:
		return -1;
	}
}

static void save_mxcsr(struct vcpu *vcpu, fpregset_t fpregs)
{
	if (vcpu->mxcsr_live)
		vcpu->state.vector.mxcsr = fpregs->mxcsr;
	vcpu->mxcsr_live = false;
	fpregs->mxcsr = vcpu->host_mxcsr;
}

/*
 * Our own floating-point code met exceptions that the guest has unmasked, because the guest's registers are live: they
 * are saved, and the code goes on with ring3's. A guest must not be able to bring us down with its control words.
 */
static bool rescue_own_code(struct vcpu *vcpu, ucontext_t *context)
{
	fpregset_t fpregs = context->uc_mcontext.fpregs;
	if (context->uc_mcontext.gregs[REG_TRAPNO] == VECTOR_XM && vcpu->mxcsr_live) {
		save_mxcsr(vcpu, fpregs);
		return true;
	}
	if (context->uc_mcontext.gregs[REG_TRAPNO] == VECTOR_MF && vcpu->x87_live) {
		struct x87_state *x87 = &vcpu->state.x87;
		x87->fcw = fpregs->cwd;
		x87->fsw = fpregs->swd;
		x87->ftw = (uint8_t)fpregs->ftw;
		for (unsigned n = 0; n < 8; n++)
			memcpy(x87->st[n], &fpregs->_st[n], 10);
		native_x87_set_live(vcpu, false);
		fpregs->cwd = 0x37f;
		fpregs->swd = 0;
		fpregs->ftw = 0;
		return true;
	}
	return false;
}

static bool redirect(struct native *native, ucontext_t *context)
{
	greg_t *registers = context->uc_mcontext.gregs;
	struct translator *translator =
	    native && native->vcpu->engine_data ? interpreter_of(native->vcpu)->translator : NULL;
	if (translator) {
		if (translator_returns_full(translator, context))
			return true;
		int translated = guest_vector(native->vcpu, (unsigned)registers[REG_TRAPNO]);

		if (translated >= 0 && translator_host_fault(translator, context, (unsigned)translated))
			return true;
	}
	if (!native || !code_arena_contains(&native->arena, (uint64_t)registers[REG_RIP]))
		return false;
	struct vcpu *vcpu = native->vcpu;
	int vector = guest_vector(vcpu, (unsigned)registers[REG_TRAPNO]);
	if (vector < 0)
		return false;
	/* The silicon has set the status flags of #XM before it raised it (SDM 1 11.5.1). */
	save_mxcsr(vcpu, context->uc_mcontext.fpregs);
	registers[REG_RIP] = (greg_t)fault_landing;
	registers[REG_RDI] = (greg_t)vcpu;
	registers[REG_RSI] = vector;
	registers[REG_RSP] = ((registers[REG_RSP] - 128) & ~15ll) - 8; /* as after a CALL */
	registers[REG_EFL] &= ~(greg_t)(FLAG_AC | FLAG_DF);
	return true;
}

static void pass_on(int signal, siginfo_t *info, void *context)
{
	const struct sigaction *action = NULL;
	for (unsigned n = 0; n < SIGNALS; n++)
		if (signals[n] == signal)
			action = &previous[n];
	if (action->sa_flags & SA_SIGINFO) {
		action->sa_sigaction(signal, info, context);
		return;
	}
	bool sent = info->si_code <= 0; /* by kill() and the like, not by an instruction */
	if (action->sa_handler == SIG_IGN && sent)
		return;
	if (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN) {
		action->sa_handler(signal);
		return;
	}
	/* The instruction faults again, now with the default action, and the core dump shows it. */
	struct sigaction standard = {.sa_handler = SIG_DFL};
	sigaction(signal, &standard, NULL);
	if (sent)
		raise(signal);
}

static void handle(int signal, siginfo_t *info, void *context)
{
	/* Linux enters a handler with EFLAGS.AC as it was; compiled code does not keep to natural alignment. */
	__asm__ volatile("pushfq; andl $~0x40000, (%%rsp); popfq" ::: "memory", "cc");
	struct native *native = running;
	if (!redirect(native, context) && !(native && rescue_own_code(native->vcpu, context))) {
		int error = errno;
		pass_on(signal, info, context);
		errno = error;
	}
}

int native_install_handlers(void)
{
	struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	int error = 0;
	sigemptyset(&action.sa_mask);
	pthread_mutex_lock(&install_lock);
	for (unsigned n = 0; n < SIGNALS && !installed && !error; n++)
		if (sigaction(signals[n], &action, &previous[n]))
			error = -errno;
	installed = !error;
	pthread_mutex_unlock(&install_lock);
	return error;
}

int native_thread_enter(struct native *native)
{
	stack_t stack;
	if (running == native)
		return 0;
	if (sigaltstack(NULL, &stack))
		return -errno;
	if (stack.ss_flags & SS_DISABLE) {
		stack = (stack_t){.ss_sp = signal_stack, .ss_size = sizeof signal_stack};
		if (sigaltstack(&stack, NULL))
			return -errno;
	}
	running = native;
	return 0;
}

void native_thread_leave(struct native *native)
{
	if (running != native)
		return;
	native_x87_save(native->vcpu);
	running = NULL;
}
