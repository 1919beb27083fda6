/* The jail of a parsing child: see jail.h. */
#include "host/jail.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

#define MEMORY_LIMIT (2ull << 30) /* private memory, with what ring3 had before */

/* The low half of a system call's argument. */
#define ARGUMENT(n)  offsetof(struct seccomp_data, args[n])
#define LOAD(field)  BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(field))
#define KILL         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
#define PERMIT       BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define CALL(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 1), PERMIT

static int filter(void)
{
	struct sock_filter program[] = {
		LOAD(offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		KILL,
		LOAD(offsetof(struct seccomp_data, nr)),
		CALL(SYS_sendto),
		CALL(SYS_recvfrom),
		CALL(SYS_munmap),
		CALL(SYS_mremap),
		CALL(SYS_brk),
		CALL(SYS_madvise),
		CALL(SYS_futex),
		CALL(SYS_getrandom),
		CALL(SYS_exit_group),
#if SANITIZED /* their own bookkeeping, and their reports */
		CALL(SYS_write),
		CALL(SYS_sched_yield),
		CALL(SYS_sigaltstack),
		CALL(SYS_rt_sigprocmask),
		CALL(SYS_getpid),
		CALL(SYS_gettid),
#endif
		/* Memory without a file, and never executable. */
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 5),
		LOAD(ARGUMENT(3)),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_ANONYMOUS, 0, 3),
		LOAD(ARGUMENT(2)),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0),
		PERMIT,
		KILL,
	};
	struct sock_fprog whole = {.len = sizeof(program) / sizeof(program[0]), .filter = program};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &whole) < 0)
		return -errno;
	return 0;
}

static int limit(int resource, rlim_t value)
{
	struct rlimit both = {.rlim_cur = value, .rlim_max = value};

	return setrlimit(resource, &both) < 0 ? -errno : 0;
}

int jail_enter(int socket, unsigned seconds)
{
	int error = 0;

	/* The launcher's signal handling is not this child's. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (dup2(socket, 0) < 0 || (!SANITIZED && close_range(1, ~0u, 0) < 0))
		return -errno;
	error = limit(RLIMIT_CPU, seconds);
	if (!error)
		error = limit(RLIMIT_CORE, 0);
	if (!error)
		error = limit(RLIMIT_FSIZE, 0);
	if (!error && !SANITIZED)
		error = limit(RLIMIT_DATA, MEMORY_LIMIT);
	return error ? error : filter();
}
