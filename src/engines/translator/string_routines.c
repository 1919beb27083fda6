/*
 * REP MOVS and REP STOS upwards, in pages that the TLB knows: routines behind the trampolines, made when a translation
 * first wants them, which are called with the guest's registers in the host's. What they do not do (downwards, operands
 * that overlap, elements across pages, misses) they leave to translator_string(), with RCX, RSI and RDI exact.
 *
 *	all in one page    look up RSI's page and RDI's; copy; add RCX to both
 *	several            the same from page to page; between two, interrupts are looked for
 *
 * Where there is AVX-512 they copy by ZMM16: REP MOVS costs its start, and thirty times as much where it stores less
 * than 64 bytes above its loads, modulo 4096. ZMM16 to ZMM31 are not the guest's below VECTOR_AVX512. Each byte is
 * written once, and the bytes of an element together. Without AVX-512 short ones go by XMM0, put aside for the while.
 */
#include <string.h>

#include "engines/translator/translation.h"
#include "memory/memory.h"

#define ROUTINE_MAX 2048       /* bytes of host code */
#define COUNT_MAX   (1u << 30) /* bytes; more is translator_string()'s */
#define FILL_MAX    1024       /* bytes; from there on REP STOS is faster unless the first one is a line's */
#define XMM_MAX     512        /* bytes; from there on REP MOVS is faster than by XMM0 */
#define ZMM         64
#define XMM         16

struct routine {
	struct emitter e;
	struct translator *t;
	unsigned view, shift; /* of the size of an element */
	bool code32;
};

/* ---- encodings ---- */

/* EVEX with ZMM16, XMM16 or YMM16 (`bytes`) and another register, or as base. */
static void emit_evex(struct emitter *e, unsigned map, bool wide, unsigned prefix, unsigned bytes, unsigned opcode,
                      unsigned other)
{
	emit_byte(e, 0x62);
	emit_byte(e, 0xc0 | (other & 8 ? 0 : 0x20) | map); /* R' */
	emit_byte(e, (wide ? 0x80 : 0) | 0x7c | prefix);
	emit_byte(e, (bytes == 64 ? 0x40 : bytes == 32 ? 0x20 : 0) | 0x08);
	emit_byte(e, opcode);
}

/* VMOVDQU64 zmm16, ymm16 or xmm16; or MOVUPS xmm0: what comes before ModRM. */
static void emit_vector_move(struct routine *r, unsigned bytes, unsigned base, bool store)
{
	struct emitter *e = &r->e;

	if (r->t->avx512) {
		emit_evex(e, 1, true, 2, bytes, store ? 0x7f : 0x6f, base);
		return;
	}
	if (base & 8)
		emit_byte(e, 0x41);
	emit_byte(e, 0x0f);
	emit_byte(e, store ? 0x11 : 0x10);
}

/* From [base + n registers], or to there. */
static void emit_vector(struct routine *r, unsigned bytes, unsigned base, unsigned n, bool store)
{
	emit_vector_move(r, bytes, base, store);
	emit_byte(&r->e, 0x40 | (base & 7));
	emit_byte(&r->e, r->t->avx512 ? n : n * XMM); /* EVEX: disp8 counts vectors (SDM 2A 2.7.5) */
}

static void emit_vector_abs(struct routine *r, uint32_t abs, bool store)
{
	struct emitter *e = &r->e;

	emit_vector_move(r, ZMM, 0, store);
	emit_byte(e, 0x04);
	emit_byte(e, 0x25);
	emit_u32(e, abs);
}

/* VMOVQ or VMOVD [base], xmm16 */
static void emit_vector_low(struct emitter *e, unsigned bytes, unsigned base)
{
	emit_evex(e, 1, bytes == 8, 1, 16, bytes == 8 ? 0xd6 : 0x7e, base);
	emit_byte(e, base & 7);
}

/* VPEXTRW [base], xmm16, 0 */
static void emit_vector_word(struct emitter *e, unsigned base)
{
	emit_evex(e, 3, false, 1, 16, 0x15, base);
	emit_byte(e, base & 7);
	emit_byte(e, 0);
}

/* VPBROADCASTB, W, D or Q zmm16 from RAX */
static void emit_broadcast(struct emitter *e, unsigned shift)
{
	emit_evex(e, 2, shift == 3, 1, ZMM, shift == 0 ? 0x7a : shift == 1 ? 0x7b : 0x7c, RAX);
	emit_byte(e, 0xc0 | RAX);
}

/* A move of 1 to 8 bytes between a register and [base]. */
static void emit_scalar(struct emitter *e, unsigned bytes, unsigned reg, unsigned base, bool store)
{
	if (bytes == 2)
		emit_byte(e, 0x66);
	emit_byte(e, 0x40 | (bytes == 8 ? 8 : 0) | (reg & 8) >> 1 | (base & 8) >> 3);
	emit_byte(e, (store ? 0x88 : 0x8a) | (bytes > 1));
	emit_byte(e, (reg & 7) << 3 | (base & 7));
}

/* test reg8, bits; jz */
static uint8_t *emit_unless(struct emitter *e, unsigned reg, unsigned bits)
{
	emit_byte(e, 0x40 | (reg & 8) >> 3);
	emit_byte(e, 0xf6);
	emit_byte(e, 0xc0 | (reg & 7));
	emit_byte(e, bits);
	return emit_jump_if(e, CC_E);
}

/* As emit_fix(), but back. */
static void emit_aim(struct emitter *e, uint8_t *place, const uint8_t *target)
{
	int32_t distance = (int32_t)(target - (place + 4));

	if (!e->full)
		memcpy(place, &distance, 4);
}

static void emit_jump_back_if(struct emitter *e, unsigned condition, const uint8_t *target)
{
	emit_aim(e, emit_jump_if(e, condition), target);
}

/* cmp a, b; cmovb to, from */
static void emit_least(struct emitter *e, unsigned a, unsigned b, unsigned to, unsigned from)
{
	emit_op_reg(e, true, 0x39, b, a);
	emit_byte(e, 0x48 | (to & 8) >> 1 | (from & 8) >> 3);
	emit_byte(e, 0x0f);
	emit_byte(e, 0x40 | CC_B);
	emit_byte(e, 0xc0 | (to & 7) << 3 | (from & 7));
}

/* Shifts RCX: extension 4 left, 5 right. */
static void emit_shift_count(struct routine *r, unsigned extension)
{
	if (r->shift)
		emit_shift_imm(&r->e, extension, RCX, r->shift);
}

static uint32_t saved(const struct routine *r, unsigned n)
{
	return xabs(&r->t->string_saved[n]);
}

/* ---- on host memory ---- */

/* ZMM16 or XMM0 is put aside, or comes back, if it is the guest's. */
static void emit_guest_vector(struct routine *r, bool back)
{
	struct emitter *e = &r->e;

	emit_compare8_abs(e, xabs(&r->t->vector_live), r->t->avx512 ? VECTOR_AVX512 : VECTOR_NONE);
	uint8_t *free = emit_jump_if(e, r->t->avx512 ? CC_NE : CC_E);
	emit_vector_abs(r, xabs(r->t->string_vector), !back);
	emit_fix(e, free);
}

/* The host's own instruction on `count` bytes; `from` may be NO_REGISTER. Destroys S1 and `count`. */
static void emit_host_string(struct routine *r, unsigned opcode, unsigned to, unsigned from, unsigned count)
{
	struct emitter *e = &r->e;

	emit_move(e, S1, RDI);
	if (from != NO_REGISTER) {
		emit_store(e, RSI, saved(r, 2));
		emit_move(e, RSI, from);
	}
	if (count != RCX) {
		emit_store(e, RCX, saved(r, 3));
		emit_move(e, RCX, count);
	}
	emit_move(e, RDI, to);
	emit_shift_count(r, 5);
	emit_byte(e, 0xf3);
	if (r->shift == 1)
		emit_byte(e, 0x66);
	if (r->shift == 3)
		emit_byte(e, 0x48);
	emit_byte(e, opcode | (r->shift > 0));
	emit_move(e, RDI, S1);
	if (from != NO_REGISTER)
		emit_load(e, RSI, saved(r, 2));
	if (count != RCX)
		emit_load(e, RCX, saved(r, 3));
}

static void copy_part(struct routine *r, unsigned bytes, unsigned n)
{
	struct emitter *e = &r->e;

	if (bytes > 8) {
		emit_vector(r, bytes, S2, n, false);
		emit_vector(r, bytes, RDX, n, true);
	} else {
		emit_scalar(e, bytes, S1, S2, false);
		emit_scalar(e, bytes, S1, RDX, true);
	}
}

static void fill_part(struct routine *r, unsigned bytes, unsigned n)
{
	struct emitter *e = &r->e;

	if (bytes > 8)
		emit_vector(r, bytes, S2, n, true);
	else if (bytes > 2)
		emit_vector_low(e, bytes, S2);
	else if (bytes == 1 || r->shift)
		emit_scalar(e, bytes, RAX, S2, true);
	else
		emit_vector_word(e, S2);
}

/* `times` parts of `bytes`, and on behind them. */
static void emit_parts(struct routine *r, unsigned bytes, unsigned times, bool copy)
{
	struct emitter *e = &r->e;

	for (unsigned n = 0; n < times; n++)
		(copy ? copy_part : fill_part)(r, bytes, n);
	emit_lea(e, S2, S2, (int)(bytes * times));
	if (copy)
		emit_lea(e, RDX, RDX, (int)(bytes * times));
}

/* Four vectors as often as that fits, then two, one, and what is less of them at most once each. */
static void emit_by_parts(struct routine *r, unsigned count, bool copy)
{
	struct emitter *e = &r->e;
	unsigned vector = r->t->avx512 ? ZMM : XMM;

	emit_group1(e, true, 7, count, (int32_t)(4 * vector)); /* cmp */
	uint8_t *few = emit_jump_if(e, CC_B), *done = NULL;
	const uint8_t *loop = e->at;
	emit_parts(r, vector, 4, copy);
	emit_lea(e, count, count, -(int)(4 * vector));
	emit_group1(e, true, 7, count, (int32_t)(4 * vector));
	emit_jump_back_if(e, CC_AE, loop);
	emit_fix(e, few);
	for (unsigned bytes = 2 * vector; bytes >= 1u << r->shift; bytes /= 2) {
		uint8_t *none = emit_unless(e, count, bytes);

		emit_parts(r, bytes < vector ? bytes : vector, bytes > vector ? 2 : 1, copy);
		emit_fix(e, none);
		if (bytes == vector)
			done = emit_unless(e, count, vector - 1);
	}
	emit_fix(e, done);
}

/* `count` bytes from [S2] to [RDX]. Destroys all these, and S1. */
static void emit_copy(struct routine *r, unsigned count)
{
	struct emitter *e = &r->e;
	uint8_t *many = NULL;

	if (!r->t->avx512) {
		emit_group1(e, true, 7, count, XMM_MAX);
		many = emit_jump_if(e, CC_AE);
	}
	emit_guest_vector(r, false);
	emit_by_parts(r, count, true);
	emit_guest_vector(r, true);
	if (many) {
		uint8_t *done = emit_jump(e);

		emit_fix(e, many);
		emit_host_string(r, 0xa4, RDX, S2, count);
		emit_fix(e, done);
	}
}

/* `count` bytes at [S2] become what is in RAX. Destroys these, and S1 (which may be `count`). */
static void emit_fill(struct routine *r, unsigned count)
{
	struct emitter *e = &r->e;

	if (!r->t->avx512) {
		emit_host_string(r, 0xaa, S2, NO_REGISTER, count);
		return;
	}
	emit_group1(e, true, 7, count, FILL_MAX);
	uint8_t *many = emit_jump_if(e, CC_AE), *vector = e->at;
	emit_guest_vector(r, false);
	emit_broadcast(e, r->shift);
	emit_by_parts(r, count, false);
	emit_guest_vector(r, true);
	uint8_t *done = emit_jump(e);
	emit_fix(e, many);
	uint8_t *aligned = emit_unless(e, S2, ZMM - 1);
	emit_aim(e, aligned, vector);
	emit_host_string(r, 0xaa, S2, NO_REGISTER, count);
	emit_fix(e, done);
}

/* ---- on the guest's ---- */

/* `offset` becomes the offset in its page of the address in `reg`, if the TLB has that, else 4096 or more; `host` its host
 * address. */
static void emit_page(struct routine *r, unsigned reg, bool write, unsigned offset, unsigned host)
{
	struct emitter *e = &r->e;
	const struct xtlb_entry *first = &r->t->tlb[r->view][0];

	emit_tlb_offset(e, host, reg);
	emit_op_base(e, true, 0x8b, offset, host, (int32_t)xabs(&first->tag[write]));
	emit_op_reg(e, true, 0x31, reg, offset); /* xor */
	emit_op_base(e, true, 0x8b, host, host, (int32_t)xabs(&first->delta[write]));
	emit_op_reg(e, true, 0x01, reg, host); /* add */
}

/* Taken unless all of RCX bytes lie in the page. Destroys `offset`. */
static uint8_t *emit_unless_whole(struct routine *r, unsigned offset)
{
	emit_op_reg(&r->e, true, 0x01, RCX, offset); /* add */
	emit_group1(&r->e, true, 7, offset, MEMORY_PAGE_SIZE);
	return emit_jump_if(&r->e, CC_A);
}

/* Taken unless the TLB has the page. */
static uint8_t *emit_unless_found(struct routine *r, unsigned offset)
{
	emit_group1(&r->e, true, 7, offset, MEMORY_PAGE_SIZE);
	return emit_jump_if(&r->e, CC_AE);
}

/* From `offset` to how many bytes of RCX can be done there, in whole elements. Taken for none. */
static uint8_t *emit_room(struct routine *r, unsigned offset)
{
	struct emitter *e = &r->e;
	uint8_t *none = NULL;

	emit_group1(e, true, 6, offset, MEMORY_PAGE_SIZE - 1); /* xor */
	emit_lea(e, offset, offset, 1);
	if (r->shift) {
		emit_group1(e, true, 4, offset, -(1 << r->shift)); /* and */
		none = emit_jump_if(e, CC_E);
	}
	emit_least(e, RCX, offset, offset, RCX);
	return none;
}

/* Taken where the destination [RDX] begins in the source [S2]. Destroys S1. */
static uint8_t *emit_if_overlap(struct routine *r, unsigned bytes)
{
	struct emitter *e = &r->e;

	emit_move(e, S1, RDX);
	emit_op_reg(e, true, 0x29, S2, S1);    /* sub */
	emit_op_reg(e, true, 0x39, bytes, S1); /* cmp */
	return emit_jump_if(e, CC_B);
}

static void emit_advance(struct routine *r, unsigned reg, unsigned bytes)
{
	emit_op_reg(&r->e, !r->code32, 0x01, bytes, reg);
}

/* RCX elements become bytes. Taken when they are more than a page. */
static uint8_t *emit_begin(struct routine *r, uint8_t **down)
{
	struct emitter *e = &r->e;

	emit_op_abs(e, false, 0xf6, 0, xabs(&r->t->vcpu->state.rflags) + 1); /* test */
	emit_byte(e, FLAG_DF >> 8);
	*down = emit_jump_if(e, CC_NE);
	emit_group1(e, true, 7, RCX, (int32_t)(MEMORY_PAGE_SIZE >> r->shift));
	uint8_t *many = emit_jump_if(e, CC_A);
	emit_shift_count(r, 4);
	return many;
}

static uint8_t *emit_begin_many(struct routine *r)
{
	emit_group1(&r->e, true, 7, RCX, (int32_t)(COUNT_MAX >> r->shift));
	uint8_t *too_many = emit_jump_if(&r->e, CC_A);
	emit_shift_count(r, 4);
	return too_many;
}

/* A page is done: to `loop` for the next. Taken when something else is to be done before. */
static uint8_t *emit_again(struct routine *r, const uint8_t *loop)
{
	struct emitter *e = &r->e;

	emit_op_reg(e, true, 0x85, RCX, RCX); /* test */
	uint8_t *done = emit_jump_if(e, CC_E);
	emit_compare32_abs(e, xabs(&r->t->vcpu->attention), 0);
	emit_jump_back_if(e, CC_E, loop);
	uint8_t *stop = emit_jump(e);
	emit_fix(e, done);
	return stop;
}

static void emit_return(struct routine *r)
{
	emit_byte(&r->e, 0xc3);
}

/* RCX counts elements again, and translator_string() takes over. */
static void emit_leave(struct routine *r, uint8_t *const *stop, unsigned stops)
{
	for (unsigned n = 0; n < stops; n++)
		if (stop[n])
			emit_fix(&r->e, stop[n]);
	emit_shift_count(r, 5);
}

static void emit_movs(struct routine *r)
{
	struct emitter *e = &r->e;
	uint8_t *down, *stop[5], *many = emit_begin(r, &down);

	emit_store(e, RDX, saved(r, 0));
	emit_page(r, RSI, false, S1, S2);
	uint8_t *far_source = emit_unless_whole(r, S1);
	emit_page(r, RDI, true, S1, RDX);
	uint8_t *far_destination = emit_unless_whole(r, S1);
	uint8_t *overlap = emit_if_overlap(r, RCX);
	emit_advance(r, RSI, RCX);
	emit_advance(r, RDI, RCX);
	emit_copy(r, RCX);
	emit_op_reg(e, false, 0x31, RCX, RCX); /* xor */
	emit_load(e, RDX, saved(r, 0));
	emit_return(r);

	emit_fix(e, many);
	uint8_t *too_many = emit_begin_many(r);
	emit_store(e, RDX, saved(r, 0));
	emit_fix(e, far_source);
	emit_fix(e, far_destination);
	emit_store(e, R8, saved(r, 1));
	const uint8_t *loop = e->at;
	emit_page(r, RSI, false, S1, S2);
	stop[0] = emit_unless_found(r, S1);
	emit_page(r, RDI, true, R8, RDX);
	stop[1] = emit_unless_found(r, R8);
	emit_least(e, R8, S1, R8, S1); /* the greater one */
	stop[2] = emit_room(r, R8);
	stop[3] = emit_if_overlap(r, R8);
	emit_advance(r, RSI, R8);
	emit_advance(r, RDI, R8);
	emit_op_reg(e, true, 0x29, R8, RCX); /* sub */
	emit_copy(r, R8);
	stop[4] = emit_again(r, loop);
	emit_load(e, R8, saved(r, 1));
	emit_load(e, RDX, saved(r, 0));
	emit_return(r);

	emit_leave(r, stop, 5);
	emit_load(e, R8, saved(r, 1));
	uint8_t *on = emit_jump(e);
	emit_leave(r, &overlap, 1);
	emit_fix(e, on);
	emit_load(e, RDX, saved(r, 0));
	emit_fix(e, too_many);
	emit_fix(e, down);
	emit_jump_to(e, r->t->string);
}

static void emit_stos(struct routine *r)
{
	struct emitter *e = &r->e;
	uint8_t *down, *stop[3], *many = emit_begin(r, &down);

	emit_page(r, RDI, true, S1, S2);
	uint8_t *far = emit_unless_whole(r, S1);
	emit_advance(r, RDI, RCX);
	emit_fill(r, RCX);
	emit_op_reg(e, false, 0x31, RCX, RCX); /* xor */
	emit_return(r);

	emit_fix(e, many);
	uint8_t *too_many = emit_begin_many(r);
	emit_fix(e, far);
	emit_store(e, R8, saved(r, 1));
	const uint8_t *loop = e->at;
	emit_page(r, RDI, true, R8, S2);
	stop[0] = emit_unless_found(r, R8);
	stop[1] = emit_room(r, R8);
	emit_advance(r, RDI, R8);
	emit_op_reg(e, true, 0x29, R8, RCX); /* sub */
	emit_fill(r, R8);
	stop[2] = emit_again(r, loop);
	emit_load(e, R8, saved(r, 1));
	emit_return(r);

	emit_leave(r, stop, 3);
	emit_load(e, R8, saved(r, 1));
	emit_fix(e, too_many);
	emit_fix(e, down);
	emit_jump_to(e, r->t->string);
}

const uint8_t *string_routine(struct translator *t, enum xstring operation, unsigned view, unsigned size, bool code32)
{
	unsigned shift = (unsigned)__builtin_ctz(size);
	const uint8_t **known = &t->string_routine[operation == XSTRING_STOS][view][shift][code32];

	if (*known)
		return *known;
	if (t->string_room_end - t->string_room < ROUTINE_MAX)
		return NULL;
	struct routine r = {
	    .e = {.at = t->string_room, .end = t->string_room + ROUTINE_MAX},
	    .t = t,
	    .view = view,
	    .shift = shift,
	    .code32 = code32,
	};
	if (operation == XSTRING_STOS)
		emit_stos(&r);
	else
		emit_movs(&r);
	if (r.e.full)
		return NULL;
	*known = t->string_room;
	t->string_room = r.e.at + (-(uintptr_t)r.e.at & 63);
	return *known;
}
