/*
 * The second opinion on a case: one of ring3's engines. Two names are not ring3's and test the tests: "native" runs
 * each case once more on the host (all must agree), "broken" does so and flips one bit of the result now and then (each
 * must be found). "taken" is the translator, whose translations are all taken from another place (translator/shared.c).
 */
#pragma once

#include "isa.h"

struct opinion {
	const struct engine *engine; /* NULL: the host again */
	bool broken;
	struct guest_runner *guest;
	struct native_runner *native;
	uint64_t ran;
};

/* 0 or -errno after one message, which starts with `program`. */
int opinion_create(struct opinion *opinion, const char *name, const char *program);
void opinion_destroy(struct opinion *opinion);
/* Runs a case. True: the outcome was made wrong on purpose. */
bool opinion_run(struct opinion *opinion, const struct isa_case *test, struct isa_outcome *outcome);
