/*
 * The slots of host-executed forms that other handlers fall back on. insn->pointer is the form.
 */
#pragma once

#include "engines/interpreter/access.h"

struct decoder;

handler native_plain;
handler_at native_read, native_write;

/* The slot of a plain vector move (vector.c), or NULL: it is none. The caller sets its pointer to the form. */
struct insn *vector_move_decode(struct decoder *d, const struct native_form *form);
