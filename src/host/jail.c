/* The jails of child processes: see jail.h. */
#include "host/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
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

/* Memory without a file, and never executable: of MAP and PROTECT, in the list's end. Everything else is killed. */
#define MEMORY_CALLS                                                                                                   \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 3, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 5),  \
	    LOAD(ARGUMENT(3)), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_ANONYMOUS, 0, 3), LOAD(ARGUMENT(2)),           \
	    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0), PERMIT, KILL

#define BEGIN                                                                                                          \
	LOAD(offsetof(struct seccomp_data, arch)), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0), KILL, \
	    LOAD(offsetof(struct seccomp_data, nr))

#if SANITIZED /* their own bookkeeping, and their reports */
#define SANITIZER_CALLS                                                                                                \
	CALL(SYS_write), CALL(SYS_sched_yield), CALL(SYS_sigaltstack), CALL(SYS_rt_sigprocmask), CALL(SYS_getpid),     \
	    CALL(SYS_gettid),
#else
#define SANITIZER_CALLS
#endif

/* A call with one of two, or four, values of an argument; others are killed. */
#define CALL_IF_2(number, n, a, b)                                                                                     \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 5), LOAD(ARGUMENT(n)),                                        \
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (a), 1, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (b), 0, 1), PERMIT,    \
	    KILL
#define CALL_IF_4(number, n, a, b, c, d)                                                                               \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 7), LOAD(ARGUMENT(n)),                                        \
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (a), 3, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (b), 2, 0),            \
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (c), 1, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (d), 0, 1), PERMIT,    \
	    KILL

static const struct sock_filter parser[] = {
    BEGIN,
    CALL(SYS_sendto),
    CALL(SYS_recvfrom),
    CALL(SYS_munmap),
    CALL(SYS_mremap),
    CALL(SYS_brk),
    CALL(SYS_madvise),
    CALL(SYS_futex),
    CALL(SYS_getrandom),
    CALL(SYS_exit_group),
    SANITIZER_CALLS MEMORY_CALLS,
};

/* As they come most often. */
static const struct sock_filter network[] = {
    BEGIN,
    CALL(SYS_recvfrom),
    CALL(SYS_sendmsg),
    CALL(SYS_epoll_wait),
    CALL(SYS_read), /* event and timer descriptors */
    CALL(SYS_write),
    CALL(SYS_sendto),
    CALL(SYS_recvmsg),
    CALL(SYS_timerfd_settime),
    CALL(SYS_epoll_ctl),
    CALL(SYS_futex),
    CALL(SYS_close),
    CALL(SYS_connect),
    CALL(SYS_accept),
    CALL(SYS_accept4),
    CALL(SYS_bind),
    CALL(SYS_listen),
    CALL(SYS_shutdown),
    CALL(SYS_getsockname),
    CALL(SYS_getpeername),
    CALL(SYS_setsockopt),
    CALL(SYS_getsockopt),
    CALL(SYS_munmap),
    CALL(SYS_mremap),
    CALL(SYS_brk),
    CALL(SYS_madvise),
    CALL(SYS_getrandom),
    CALL(SYS_clock_gettime),
    CALL(SYS_gettimeofday),
    CALL(SYS_restart_syscall),
    CALL(SYS_fstat), /* /etc/resolv.conf; where Landlock allows: read_name_servers() */
    CALL(SYS_newfstatat),
    CALL(SYS_lseek),
    CALL(SYS_exit_group),
    CALL_IF_2(SYS_socket, 0, AF_INET, AF_INET6),
    CALL_IF_2(SYS_openat, 2, O_RDONLY, O_RDONLY | O_CLOEXEC),
    CALL_IF_4(SYS_ioctl, 1, FIONREAD, FIONBIO, TCGETS, SIOCATMARK),
    CALL_IF_4(SYS_fcntl, 1, F_GETFD, F_SETFD, F_GETFL, F_SETFL),
    SANITIZER_CALLS MEMORY_CALLS,
};

static int filter(const struct sock_filter *program, size_t count)
{
	struct sock_fprog whole = {.len = (unsigned short)count, .filter = (struct sock_filter *)(uintptr_t)program};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &whole) < 0)
		return -errno;
	return 0;
}

static int limit(int resource, rlim_t value)
{
	struct rlimit both = {.rlim_cur = value, .rlim_max = value};

	return setrlimit(resource, &both) < 0 ? -errno : 0;
}

/* Of both jails: no core files, no written ones, bounded memory. */
static int limit_all(void)
{
	int error = limit(RLIMIT_CORE, 0);

	if (!error)
		error = limit(RLIMIT_FSIZE, 0);
	if (!error && !SANITIZED)
		error = limit(RLIMIT_DATA, MEMORY_LIMIT);
	return error;
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
		error = limit_all();
	return error ? error : filter(parser, sizeof(parser) / sizeof(parser[0]));
}

/*
 * Of all files only the list of name servers stays readable: its folder where that is one of its own (it is replaced there now and then),
 * else the file. Where the kernel has no Landlock, the rights of the user alone keep files from being read.
 */
static int read_name_servers(void)
{
	const struct landlock_ruleset_attr all = {.handled_access_fs = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1};
	struct landlock_path_beneath_attr rule = {.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE};
	char path[PATH_MAX], *slash;
	int rules = (int)syscall(SYS_landlock_create_ruleset, &all, sizeof(all), 0), error = 0;

	if (rules < 0)
		return 0;
	rule.parent_fd = -1;
	if (realpath("/etc/resolv.conf", path)) {
		slash = strrchr(path, '/');
		if (strncmp(path, "/etc/", 5) != 0 && slash != path)
			*slash = 0;
		rule.parent_fd = open(path, O_PATH | O_CLOEXEC);
	}
	if (rule.parent_fd >= 0 && syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
		error = -errno;
	if (!error && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || syscall(SYS_landlock_restrict_self, rules, 0) < 0))
		error = -errno;
	if (rule.parent_fd >= 0)
		close(rule.parent_fd);
	close(rules);
	return error;
}

int jail_enter_network(void)
{
	int error = read_name_servers();

	if (!error)
		error = limit_all();
	return error ? error : filter(network, sizeof(network) / sizeof(network[0]));
}
