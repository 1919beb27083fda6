/*
 * The list of engines, and the choice among them.
 */
#include <stdio.h>
#include <string.h>

#include "engines/engine.h"

#define WHY_SIZE 256

const struct engine *const engines[] = {
    &engine_translator,
    &engine_interpreter,
    NULL,
};

const struct engine *engine_select(const char *name, char *why)
{
	bool any = !name || strcmp(name, "auto") == 0;

	for (unsigned i = 0; engines[i]; i++) {
		if (!any && strcmp(name, engines[i]->name) != 0)
			continue;
		if (engines[i]->usable(why))
			return engines[i];
		if (!any)
			return NULL;
	}
	if (!any)
		snprintf(why, WHY_SIZE, "no engine is called \"%s\"", name);
	return NULL;
}
