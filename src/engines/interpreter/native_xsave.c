/*
 * FXSAVE, FXRSTOR and the XSAVE family on the register file (SDM 1 10.5 and chapter 13).
 *
 * An image is put together in a buffer, with a list of the ranges that the instruction writes; all of them are probed
 * before the first is written, so that a fault leaves memory and registers as they were. Loads read everything before
 * they change a register.
 *
 * XSAVEOPT and XSAVES use the init optimization, not the modified one (which is always allowed).
 */
#include "engines/interpreter/native_private.h"

#include <string.h>

#include "x86/exceptions.h"
#include "x86/mmu.h"
#include "x86/segments.h"
#include "x86/system.h"

#define LEGACY_SIZE  512u
#define HEADER_SIZE  64u
#define XMM_OFFSET   160u
#define XCOMP_FORMAT (1ull << 63)
#define FSW_ES       0x0080u
#define COMPONENTS   8u /* of XCR0 that have registers here: 0, 1, 2, 5, 6, 7 */
#define IMAGE_MAX    4096u

struct image {
	_Alignas(64) uint8_t bytes[IMAGE_MAX];
	unsigned range_count;
	struct {
		unsigned offset, length;
	} range[16];
};

static void image_add(struct image *image, unsigned offset, unsigned length)
{
	if (!length || offset + length > IMAGE_MAX)
		return;
	image->range[image->range_count].offset = offset;
	image->range[image->range_count++].length = length;
}

static void image_write(struct vcpu *vcpu, const struct image *image, uint64_t linear)
{
	for (unsigned n = 0; n < image->range_count; n++)
		mmu_probe_write(vcpu, linear + image->range[n].offset, image->range[n].length);
	for (unsigned n = 0; n < image->range_count; n++)
		mmu_write_bytes(vcpu, linear + image->range[n].offset, image->bytes + image->range[n].offset,
		                image->range[n].length);
}

static bool is_64bit_image(const struct native_operation *operation)
{
	switch (native_entry_of(operation)->elements.mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR64:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XSAVES64:
	case ZYDIS_MNEMONIC_XRSTOR64:
	case ZYDIS_MNEMONIC_XRSTORS64:
		return true;
	default:
		return false;
	}
}

/* Bytes 0-23 and 32-159. state.x87 is not live. */
static void x87_to_image(const struct vcpu *vcpu, uint8_t *image, bool wide)
{
	const struct cpu_state *s = &vcpu->state;
	struct x87_state x = s->x87;
	x.reserved1 = 0;
	if (vcpu->model && vcpu->model->amd && !(x.fsw & FSW_ES)) {
		/* AMD stores the pointers only of an unmasked exception (APM 2 11.4.4), else zeros. */
		x.fop = 0;
		x.fip = x.fdp = 0;
	} else if (!wide) {
		x.fip = (uint32_t)x.fip | (uint64_t)s->x87_fcs << 32;
		x.fdp = (uint32_t)x.fdp | (uint64_t)s->x87_fds << 32;
	}
	for (unsigned n = 0; n < 8; n++)
		memset(x.st[n] + 10, 0, 6);
	memcpy(image, &x, 24);
	memcpy(image + 32, x.st, sizeof x.st);
}

/* Leaves the registers live: the host's own load makes reserved bits and FSW.ES what they should be. */
static void x87_from_image(struct vcpu *vcpu, const uint8_t *image, bool wide)
{
	struct cpu_state *s = &vcpu->state;
	memcpy(&s->x87, image, 24);
	memcpy(s->x87.st, image + 32, sizeof s->x87.st);
	s->x87.reserved1 = 0;
	s->x87.fop &= 0x7ff;
	s->x87_fcs = s->x87_fds = 0;
	if (!wide) {
		s->x87_fcs = (uint16_t)(s->x87.fip >> 32);
		s->x87_fds = (uint16_t)(s->x87.fdp >> 32);
		s->x87.fip = (uint32_t)s->x87.fip;
		s->x87.fdp = (uint32_t)s->x87.fdp;
	}
	for (unsigned n = 0; n < 8; n++)
		memset(s->x87.st[n] + 10, 0, 6);
	native_x87_load(vcpu);
}

static const struct x87_state x87_initial = {.fcw = 0x37f};

static void x87_initialize(struct cpu_state *s)
{
	s->x87 = x87_initial;
	s->x87_fcs = s->x87_fds = 0;
}

static void mxcsr_to_image(const struct vcpu *vcpu, uint8_t *image)
{
	memcpy(image + 24, &vcpu->state.vector.mxcsr, 4);
	memcpy(image + 28, &vcpu->host_mxcsr_mask, 4);
}

static uint32_t mxcsr_from_image(struct vcpu *vcpu, const uint8_t *image)
{
	uint32_t mxcsr;
	memcpy(&mxcsr, image + 24, 4);
	if (mxcsr & ~vcpu->host_mxcsr_mask)
		x86_raise(vcpu, VECTOR_GP);
	return mxcsr;
}

static unsigned register_count(const struct vcpu *vcpu)
{
	return cpu_64bit_code(&vcpu->state) ? 16 : 8;
}

/* FXSAVE and FXRSTOR leave XMM alone when the OS has not set OSFXSR, or with AMD's fast variant at CPL 0 (APM
 * 2 11.4.4). */
static bool fx_has_xmm(const struct vcpu *vcpu)
{
	const struct cpu_state *s = &vcpu->state;
	if (!(s->cr4 & CR4_OSFXSR))
		return false;
	return !((s->efer & EFER_FFXSR) && cpu_64bit_code(s) && cpu_cpl(s) == 0);
}

static uint64_t fx_linear(struct vcpu *vcpu, const struct native_operation *operation, bool write)
{
	uint64_t linear = segment_linear(vcpu, operation->segment, operation->offset, LEGACY_SIZE, write);
	native_check_alignment(vcpu, linear, 4); /* AMD: #AC for less than 4, #GP for the rest */
	if (linear & 15)
		x86_raise(vcpu, VECTOR_GP);
	return linear;
}

void native_fxsave(struct vcpu *vcpu, const struct native_operation *operation)
{
	uint64_t linear = fx_linear(vcpu, operation, true);
	struct image image = {.range_count = 0};
	native_x87_save(vcpu);
	x87_to_image(vcpu, image.bytes, is_64bit_image(operation));
	mxcsr_to_image(vcpu, image.bytes);
	image_add(&image, 0, XMM_OFFSET);
	if (fx_has_xmm(vcpu)) {
		for (unsigned n = 0; n < register_count(vcpu); n++)
			memcpy(image.bytes + XMM_OFFSET + n * 16, vcpu->state.vector.zmm[n], 16);
		image_add(&image, XMM_OFFSET, register_count(vcpu) * 16);
	}
	mmu_probe_write(vcpu, linear, LEGACY_SIZE);
	image_write(vcpu, &image, linear);
}

void native_fxrstor(struct vcpu *vcpu, const struct native_operation *operation)
{
	uint64_t linear = fx_linear(vcpu, operation, false);
	uint8_t image[LEGACY_SIZE];
	mmu_read_bytes(vcpu, linear, image, sizeof image);
	uint32_t mxcsr = vcpu->state.cr4 & CR4_OSFXSR ? mxcsr_from_image(vcpu, image) : vcpu->state.vector.mxcsr;
	native_x87_save(vcpu);
	x87_from_image(vcpu, image, is_64bit_image(operation));
	vcpu->state.vector.mxcsr = mxcsr;
	if (fx_has_xmm(vcpu))
		for (unsigned n = 0; n < register_count(vcpu); n++)
			memcpy(vcpu->state.vector.zmm[n], image + XMM_OFFSET + n * 16, 16);
}

/*
 * The extended components: `count` pieces of `size` bytes at `offset` of each register from `first` on. Outside 64-bit
 * code only the first eight registers take part, and the upper sixteen not at all (SDM 1 13.5).
 */
struct component {
	uint8_t first, count, offset, size;
};

static bool component_get(const struct vcpu *vcpu, unsigned i, struct component *c)
{
	bool wide = cpu_64bit_code(&vcpu->state);
	switch (i) {
	case 2:
		*c = (struct component){0, wide ? 16 : 8, 16, 16};
		return true;
	case 6:
		*c = (struct component){0, wide ? 16 : 8, 32, 32};
		return true;
	case 7:
		*c = (struct component){16, wide ? 16 : 0, 0, 64};
		return true;
	default:
		return false;
	}
}

static unsigned component_to_image(const struct vcpu *vcpu, unsigned i, uint8_t *image)
{
	const struct vector_state *v = &vcpu->state.vector;
	struct component c;
	if (i == 5) {
		memcpy(image, v->opmask, sizeof v->opmask);
		return sizeof v->opmask;
	}
	if (!component_get(vcpu, i, &c))
		return 0;
	for (unsigned n = 0; n < c.count; n++)
		memcpy(image + n * c.size, v->zmm[c.first + n] + c.offset, c.size);
	return c.count * c.size;
}

/* `image` NULL: the initial state, zeros. */
static void component_from_image(const struct vcpu *vcpu, struct vector_state *v, unsigned i, const uint8_t *image)
{
	static const uint8_t zero[64];
	struct component c;
	if (i == 5) {
		for (unsigned k = 0; k < 8; k++)
			memcpy(&v->opmask[k], image ? image + k * 8 : zero, 8);
		return;
	}
	if (!component_get(vcpu, i, &c))
		return;
	for (unsigned n = 0; n < c.count; n++)
		memcpy(v->zmm[c.first + n] + c.offset, image ? image + n * c.size : zero, c.size);
}

/* `length`: a multiple of 16. */
static bool all_zero(const uint8_t *bytes, size_t length)
{
	for (size_t at = 0; at < length; at += 16) {
		uint64_t part[2];

		memcpy(part, bytes + at, 16);
		if (part[0] | part[1])
			return false;
	}
	return true;
}

/* XINUSE: which components are not in their initial state (SDM 1 13.6). */
static uint64_t components_in_use(const struct vcpu *vcpu)
{
	const struct cpu_state *s = &vcpu->state;
	const struct vector_state *v = &s->vector;
	uint64_t in_use = 0;
	if (memcmp(&s->x87, &x87_initial, offsetof(struct x87_state, unused_mxcsr)) ||
	    !all_zero(s->x87.st[0], sizeof s->x87.st) || s->x87_fcs || s->x87_fds)
		in_use |= XSTATE_X87;
	for (unsigned n = 0; n < 16; n++) {
		if (!all_zero(v->zmm[n], 16))
			in_use |= XSTATE_SSE;
		if (!all_zero(v->zmm[n] + 16, 16))
			in_use |= XSTATE_AVX;
		if (!all_zero(v->zmm[n] + 32, 32))
			in_use |= XSTATE_ZMM_HI256;
	}
	if (!all_zero(v->zmm[16], 16 * 64))
		in_use |= XSTATE_HI16_ZMM;
	if (!all_zero((const uint8_t *)v->opmask, sizeof v->opmask))
		in_use |= XSTATE_OPMASK;
	return in_use;
}

/* Where component i is: fixed, or after those of `format` before it (SDM 1 13.4.3). 0: beyond what an image may have.
 */
static unsigned component_offset(const struct vcpu *vcpu, unsigned i, bool compact, uint64_t format)
{
	const struct cpu_model *model = vcpu->model;
	uint64_t offset = LEGACY_SIZE + HEADER_SIZE;
	if (!compact)
		return model->xsave_offset[i];
	for (unsigned n = 2; n <= i; n++) {
		if (!(format >> n & 1))
			continue;
		if (model->xsave_aligned >> n & 1)
			offset = (offset + 63) & ~63ull;
		if (n < i)
			offset += model->xsave_size[n];
	}
	return (unsigned)offset;
}

/* The checks that all of the family share, and the requested components. */
static uint64_t xsave_begin(struct vcpu *vcpu, bool supervisor)
{
	const struct cpu_state *s = &vcpu->state;
	if (!(s->cr4 & CR4_OSXSAVE))
		x86_raise(vcpu, VECTOR_UD);
	if (supervisor && cpu_cpl(s) != 0)
		x86_raise(vcpu, VECTOR_GP);
	if (s->cr0 & CR0_TS)
		x86_raise(vcpu, VECTOR_NM);
	native_x87_save(vcpu);
	uint64_t asked = (uint32_t)s->gpr[RAX] | s->gpr[RDX] << 32;
	return asked & (s->xcr0 | (supervisor ? s->msr.xss : 0));
}

static uint64_t xsave_linear(struct vcpu *vcpu, const struct native_operation *operation, uint64_t components,
                             bool compact, bool write)
{
	unsigned end = LEGACY_SIZE + HEADER_SIZE;
	for (unsigned i = 2; i < COMPONENTS; i++)
		if (components >> i & 1) {
			unsigned component_end =
			    component_offset(vcpu, i, compact, components) + vcpu->model->xsave_size[i];
			if (component_end > end)
				end = component_end;
		}
	uint64_t linear = segment_linear(vcpu, operation->segment, operation->offset, end, write);
	if (linear & 63)
		x86_raise(vcpu, VECTOR_GP);
	return linear;
}

void native_xsave(struct vcpu *vcpu, const struct native_operation *operation)
{
	unsigned mnemonic = native_entry_of(operation)->elements.mnemonic;
	bool supervisor = mnemonic == ZYDIS_MNEMONIC_XSAVES || mnemonic == ZYDIS_MNEMONIC_XSAVES64;
	bool compact = supervisor || mnemonic == ZYDIS_MNEMONIC_XSAVEC || mnemonic == ZYDIS_MNEMONIC_XSAVEC64;
	bool optimize = compact || mnemonic == ZYDIS_MNEMONIC_XSAVEOPT || mnemonic == ZYDIS_MNEMONIC_XSAVEOPT64;
	uint64_t requested = xsave_begin(vcpu, supervisor), in_use = components_in_use(vcpu);
	uint64_t linear = xsave_linear(vcpu, operation, requested, compact, true);
	const struct cpu_state *s = &vcpu->state;
	struct image image; /* of the components what is written is filled */
	uint64_t *header = (uint64_t *)(image.bytes + LEGACY_SIZE);

	image.range_count = 0;
	memset(image.bytes, 0, LEGACY_SIZE + HEADER_SIZE);
	if (compact && s->vector.mxcsr != NATIVE_MXCSR)
		in_use |= XSTATE_SSE;
	if (compact) {
		header[0] = requested & in_use;
		header[1] = requested | XCOMP_FORMAT;
		image_add(&image, LEGACY_SIZE, 16);
	} else {
		mmu_probe_write(vcpu, linear + LEGACY_SIZE, 8); /* a missing page is a failed write */
		header[0] = (mmu_read(vcpu, linear + LEGACY_SIZE, 8) & ~requested) | (requested & in_use);
		image_add(&image, LEGACY_SIZE, 8);
	}
	uint64_t saved = optimize ? requested & in_use : requested;
	if (saved & XSTATE_X87) {
		x87_to_image(vcpu, image.bytes, is_64bit_image(operation));
		image_add(&image, 0, 24);
		image_add(&image, 32, sizeof s->x87.st);
	}
	if (compact ? saved & XSTATE_SSE : requested & (XSTATE_SSE | XSTATE_AVX)) {
		mxcsr_to_image(vcpu, image.bytes);
		image_add(&image, 24, 8);
	}
	if (saved & XSTATE_SSE) {
		for (unsigned n = 0; n < register_count(vcpu); n++)
			memcpy(image.bytes + XMM_OFFSET + n * 16, s->vector.zmm[n], 16);
		image_add(&image, XMM_OFFSET, register_count(vcpu) * 16);
	}
	for (unsigned i = 2; i < COMPONENTS; i++) {
		if (!(saved >> i & 1))
			continue;
		unsigned offset = component_offset(vcpu, i, compact, requested);
		if (offset <= IMAGE_MAX - 1024)
			image_add(&image, offset, component_to_image(vcpu, i, image.bytes + offset));
	}
	image_write(vcpu, &image, linear);
}

/* XRSTOR's checks of the header (SDM 1 13.8.1, 13.12). Returns whether the image is compacted. */
static bool header_check(struct vcpu *vcpu, const uint64_t header[8], bool supervisor)
{
	const struct cpu_state *s = &vcpu->state;
	uint64_t allowed = s->xcr0 | (supervisor ? s->msr.xss : 0);
	bool compact = header[1] & XCOMP_FORMAT;
	bool bad = supervisor && !compact;
	if (compact) {
		bad |= (header[1] & ~XCOMP_FORMAT & ~allowed) != 0 || (header[0] & ~header[1]) != 0;
		bad |= !all_zero((const uint8_t *)&header[2], 48);
	} else {
		bad |= (header[0] & ~allowed) != 0 || header[1] != 0 || header[2] != 0;
	}
	if (bad)
		x86_raise(vcpu, VECTOR_GP);
	return compact;
}

void native_xrstor(struct vcpu *vcpu, const struct native_operation *operation)
{
	unsigned mnemonic = native_entry_of(operation)->elements.mnemonic;
	bool supervisor = mnemonic == ZYDIS_MNEMONIC_XRSTORS || mnemonic == ZYDIS_MNEMONIC_XRSTORS64;
	uint64_t requested = xsave_begin(vcpu, supervisor), header[8];
	uint64_t linear = xsave_linear(vcpu, operation, 0, false, false);
	struct cpu_state *s = &vcpu->state;
	struct vector_state vector = s->vector;
	uint8_t legacy[LEGACY_SIZE], buffer[1024];

	mmu_read_bytes(vcpu, linear + LEGACY_SIZE, header, sizeof header);
	bool compact = header_check(vcpu, header, supervisor);
	uint64_t loaded = requested & header[0];
	xsave_linear(vcpu, operation, compact ? header[1] & ~XCOMP_FORMAT : requested, compact, false);
	if (requested & (XSTATE_X87 | XSTATE_SSE | XSTATE_AVX))
		mmu_read_bytes(vcpu, linear, legacy, sizeof legacy);
	if (compact) {
		if (loaded & XSTATE_SSE)
			vector.mxcsr = mxcsr_from_image(vcpu, legacy);
		else if (requested & XSTATE_SSE)
			vector.mxcsr = NATIVE_MXCSR;
	} else if (requested & (XSTATE_SSE | XSTATE_AVX)) {
		vector.mxcsr = mxcsr_from_image(vcpu, legacy);
	}
	if (requested & XSTATE_SSE)
		for (unsigned n = 0; n < register_count(vcpu); n++) {
			if (loaded & XSTATE_SSE)
				memcpy(vector.zmm[n], legacy + XMM_OFFSET + n * 16, 16);
			else
				memset(vector.zmm[n], 0, 16);
		}
	for (unsigned i = 2; i < COMPONENTS; i++) {
		if (!(requested >> i & 1))
			continue;
		unsigned size = vcpu->model->xsave_size[i];
		if (!(loaded >> i & 1) || size > sizeof buffer) {
			component_from_image(vcpu, &vector, i, NULL);
			continue;
		}
		mmu_read_bytes(vcpu, linear + component_offset(vcpu, i, compact, header[1]), buffer, size);
		component_from_image(vcpu, &vector, i, buffer);
	}
	if (loaded & XSTATE_X87)
		x87_from_image(vcpu, legacy, is_64bit_image(operation));
	else if (requested & XSTATE_X87)
		x87_initialize(s);
	s->vector = vector;
}
