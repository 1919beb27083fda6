/*
 * The stack of returns: what translated CALLs leave for translated RETs, so that the host predicts them, and no table is
 * looked into. While translated code runs it is the host's stack (RSP); C runs on ring3's own (trampolines.c).
 *
 *	guard page | ... free ... | newest | ... | oldest | filler
 *	                             |
 *	                             +-- [rsp]  host address behind the CALL      [rsp+8]  guest's return address
 *
 * A RET compares the address that it finds on the guest's stack with that of the newest, and of the one before: the same,
 * and the host returns to it; another, and it is an indirect transfer like others, and the entries stay. So an entry is only
 * a guess that saves time, and one too many or too few (a longjmp, another thread, a CALL of the interpreter) costs no more
 * than that.
 *
 * Where a host address leads, the code behind the CALL, there is a link to the guest's return address: undone as others are,
 * when code is written or evicted. It means what it says while that address means the same page, and its code is there:
 * when that may be over, the stack is emptied. An entry must not be found in another view than its own, where the same
 * addresses are entered with other rights: each view has its stack. 32-bit code does not use them.
 *
 * Trampolines have what is pushed for them there, too, but do not keep it there while C runs that may empty the stack.
 *
 * The depth of the guest's calls is not bounded: who comes to the guard page goes on with the newest entries alone, at the
 * stack's beginning.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "engines/translator/runtime.h"

#define ROOM   32768u /* of a view */
#define GUARD  4096u
#define FILLER 64u
#define KEPT   256u /* with what a trampoline may have pushed */
#define EACH   (GUARD + ROOM)

static uint8_t *stack_of(const struct translator *t, unsigned view)
{
	return t->returns + (size_t)view * EACH;
}

/* Of a view without entries: an address that no guest can know (a RET there would be the host's), nor canonical. */
static uint64_t *top_of(const struct translator *t, unsigned view)
{
	return (uint64_t *)(stack_of(t, view) + EACH - FILLER);
}

int returns_create(struct translator *t)
{
	uint64_t secret;

	if (getrandom(&secret, sizeof(secret), 0) != sizeof(secret))
		return -1;
	t->returns = mmap(NULL, (size_t)EACH * MMU_VIEWS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (t->returns == MAP_FAILED) {
		t->returns = NULL;
		return -1;
	}
	for (unsigned view = 0; view < MMU_VIEWS; view++) {
		if (mprotect(stack_of(t, view), GUARD, PROT_NONE))
			return -1;
		for (unsigned n = 0; n < FILLER / sizeof(uint64_t); n++)
			top_of(t, view)[n] = (secret | 1ull << 63) & ~(1ull << 62);
	}
	returns_forget_all(t);
	return 0;
}

void returns_destroy(struct translator *t)
{
	if (t->returns)
		munmap(t->returns, (size_t)EACH * MMU_VIEWS);
}

void returns_forget(struct translator *t, bool user)
{
	for (unsigned view = 0; view < MMU_VIEWS; view++)
		if ((view == MMU_USER) == user)
			t->return_rsp[view] = (uintptr_t)top_of(t, view);
}

void returns_forget_all(struct translator *t)
{
	returns_forget(t, false);
	returns_forget(t, true);
}

bool translator_returns_full(struct translator *t, ucontext_t *context)
{
	greg_t *registers = context->uc_mcontext.gregs;
	uint64_t wanted = (uint64_t)registers[REG_RSP] - 8 - (uint64_t)(uintptr_t)t->returns;

	if (!t->returns || !code_arena_contains(&t->arena, (uint64_t)registers[REG_RIP]) ||
	    wanted >= (uint64_t)EACH * MMU_VIEWS || wanted % EACH >= GUARD)
		return false;
	uint8_t *kept = (uint8_t *)top_of(t, (unsigned)(wanted / EACH)) - KEPT;
	memcpy(kept, (void *)(uintptr_t)registers[REG_RSP], KEPT);
	registers[REG_RSP] = (greg_t)(uintptr_t)kept;
	t->counters.returns_full++;
	return true;
}
