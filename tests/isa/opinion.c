#include <errno.h>
#include <string.h>

#include "engines/engine.h"

#include "opinion.h"

#define BROKEN_EVERY 97

int opinion_create(struct opinion *opinion, const char *name, const char *program)
{
	char why[256];

	*opinion = (struct opinion){0};
	if (!strcmp(name, "native") || !strcmp(name, "broken")) {
		opinion->broken = name[0] == 'b';
		opinion->native = native_create_runner();
		return opinion->native ? 0 : -errno;
	}
	bool taken = !strcmp(name, "taken");
	opinion->engine = engine_select(taken ? "translator" : name, why);
	if (!opinion->engine) {
		fprintf(stderr, "%s: engine %s: %s\n", program, name, why);
		return -EINVAL;
	}
	opinion->guest = guest_create(opinion->engine);
	return opinion->guest && (!taken || guest_take_translations(opinion->guest)) ? 0 : -EIO;
}

void opinion_destroy(struct opinion *opinion)
{
	if (opinion->guest)
		guest_destroy(opinion->guest);
	if (opinion->native)
		native_destroy_runner(opinion->native);
}

/* Changes one bit that a comparison must notice. */
static void break_outcome(struct isa_outcome *outcome, uint64_t n)
{
	switch (n % 8) {
	case 0:
		outcome->gpr[RBX] ^= 1;
		break;
	case 1:
		outcome->rflags ^= FLAG_DF;
		break;
	case 2:
		outcome->vector.zmm[9][17] ^= 4;
		break;
	case 3:
		outcome->x87.st[3][9] ^= 0x80;
		break;
	case 4:
		outcome->rip++;
		break;
	case 5:
		outcome->changed |= 1u << PAGE_HIGH;
		memcpy(outcome->page[PAGE_HIGH], isa_background(PAGE_HIGH), 4096);
		outcome->page[PAGE_HIGH][3] ^= 1;
		break;
	case 6:
		outcome->trap ^= 7;
		break;
	default:
		outcome->vector.mxcsr ^= 0x2000;
	}
}

bool opinion_run(struct opinion *opinion, const struct isa_case *test, struct isa_outcome *outcome)
{
	if (opinion->guest) {
		guest_run(opinion->guest, test, outcome);
		return false;
	}
	memcpy(native_case(opinion->native, 0), test, sizeof(*test));
	if (native_start(opinion->native, 1) || native_wait(opinion->native)) {
		outcome->status = STATUS_ERROR;
		return false;
	}
	memcpy(outcome, native_outcome(opinion->native, 0), sizeof(*outcome));
	if (!opinion->broken || ++opinion->ran % BROKEN_EVERY)
		return false;
	break_outcome(outcome, opinion->ran / BROKEN_EVERY);
	return true;
}
