/*
 * The x87 unit: guest registers live in the host's own between instructions; and the instructions that store or load
 * its environment, whose images have the guest's instruction and data pointers, and four layouts (SDM 1 8.1.10).
 *
 * FCW, FSW, tags and registers of state.x87 are stale while vcpu->x87_live; FIP, FDP, FOP and their selectors are
 * always there, for the host's unit holds ring3's addresses.
 */
#include "engines/interpreter/native_private.h"

#include <string.h>

#include "x86/exceptions.h"
#include "x86/mmu.h"
#include "x86/segments.h"

#define FSW_ES 0x0080u

#define XMM_CLOBBER                                                                                                    \
	"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",     \
	    "xmm13", "xmm14", "xmm15"

void native_x87_load(struct vcpu *vcpu)
{
	if (vcpu->x87_live)
		return;
	const struct x87_state *x87 = &vcpu->state.x87;
	struct {
		_Alignas(16) struct x87_state x87;
		uint8_t rest[512 - sizeof(struct x87_state)];
	} image = {.x87.fcw = x87->fcw, .x87.fsw = x87->fsw, .x87.ftw = x87->ftw};
	__asm__ volatile("stmxcsr %0" : "=m"(image.x87.unused_mxcsr)); /* FXRSTOR loads it */
	memcpy(image.x87.st, x87->st, sizeof x87->st);
	__asm__ volatile("fxrstor64 %0" : : "m"(image) : "memory", XMM_CLOBBER);
	native_x87_set_live(vcpu, true);
}

void native_mxcsr_save(struct vcpu *vcpu)
{
	if (!vcpu->mxcsr_live)
		return;
	__asm__ volatile("stmxcsr %0\n\tldmxcsr %1" : "=m"(vcpu->state.vector.mxcsr) : "m"(vcpu->host_mxcsr));
	vcpu->mxcsr_live = false;
}

void native_x87_save(struct vcpu *vcpu)
{
	struct x87_state *x87 = &vcpu->state.x87;
	struct {
		_Alignas(16) struct x87_state x87;
		uint8_t rest[512 - sizeof(struct x87_state)];
	} image;
	native_mxcsr_save(vcpu);
	if (!vcpu->x87_live)
		return;
	__asm__ volatile("fxsave64 %0\n\tfninit" : "=m"(image) : : "memory");
	x87->fcw = image.x87.fcw;
	x87->fsw = image.x87.fsw;
	x87->ftw = image.x87.ftw;
	memcpy(x87->st, image.x87.st, sizeof x87->st);
	native_x87_set_live(vcpu, false);
}

static void clear_pointers(struct cpu_state *s)
{
	s->x87.fop = 0;
	s->x87.fip = s->x87.fdp = 0;
	s->x87_fcs = s->x87_fds = 0;
}

void native_fninit(struct vcpu *vcpu, void *memory)
{
	native_x87_load(vcpu);
	__asm__ volatile("fninit");
	clear_pointers(&vcpu->state);
}

/* The host's own 32-bit protected-mode image, from which the registers' part is taken. */
struct environment {
	uint16_t fcw, unused0, fsw, unused1, ftw, unused2;
	uint32_t fip;
	uint16_t fcs, fop;
	uint32_t fdp;
	uint16_t fds, unused3;
};
_Static_assert(sizeof(struct environment) == 28, "x87 environment, SDM 1 figure 8-9");

struct saved_state {
	struct environment environment;
	uint8_t st[80];
};
_Static_assert(sizeof(struct saved_state) == 108, "FSAVE image");

static bool real_format(const struct cpu_state *s)
{
	return cpu_real_or_vm86(s);
}

/* SDM 1 figures 8-9 to 8-12. Returns 14 or 28. */
static unsigned environment_to_image(const struct cpu_state *s, const struct environment *e, unsigned operand_size,
                                     uint8_t *image)
{
	uint64_t ip = s->x87.fip, dp = s->x87.fdp;
	uint16_t fop = s->x87.fop & 0x7ff;
	if (real_format(s)) {
		ip += (uint64_t)s->x87_fcs << 4;
		dp += (uint64_t)s->x87_fds << 4;
	}
	if (operand_size == 2) {
		uint16_t words[7] = {e->fcw, e->fsw, e->ftw, (uint16_t)ip, s->x87_fcs, (uint16_t)dp, s->x87_fds};
		if (real_format(s)) {
			words[4] = (uint16_t)((ip >> 16 & 15) << 12 | fop);
			words[6] = (uint16_t)((dp >> 16 & 15) << 12);
		}
		memcpy(image, words, sizeof words);
		return sizeof words;
	}
	uint32_t words[7] = {0xffff0000u | e->fcw,
	                     0xffff0000u | e->fsw,
	                     0xffff0000u | e->ftw,
	                     (uint32_t)ip,
	                     s->x87_fcs | (uint32_t)fop << 16,
	                     (uint32_t)dp,
	                     0xffff0000u | s->x87_fds};
	if (real_format(s)) {
		words[3] = 0xffff0000u | (uint16_t)ip;
		words[4] = (uint32_t)(ip >> 16 & 0xffff) << 12 | fop;
		words[5] = 0xffff0000u | (uint16_t)dp;
		words[6] = (uint32_t)(dp >> 16 & 0xffff) << 12;
	}
	memcpy(image, words, sizeof words);
	return sizeof words;
}

static void environment_from_image(struct cpu_state *s, struct environment *e, unsigned operand_size,
                                   const uint8_t *image)
{
	uint32_t words[7];
	for (unsigned n = 0; n < 7; n++) {
		words[n] = 0;
		memcpy(&words[n], image + n * operand_size, operand_size);
	}
	*e = (struct environment){.fcw = (uint16_t)words[0],
	                          .fsw = (uint16_t)words[1],
	                          .ftw = (uint16_t)words[2],
	                          .unused0 = 0xffff,
	                          .unused1 = 0xffff,
	                          .unused2 = 0xffff,
	                          .unused3 = 0xffff};
	clear_pointers(s);
	if (real_format(s)) {
		s->x87.fip = (words[3] & 0xffff) | (words[4] & 0x0ffff000) << 4;
		s->x87.fop = words[4] & 0x7ff;
		s->x87.fdp = (words[5] & 0xffff) | (words[6] & 0x0ffff000) << 4;
		if (operand_size == 2) {
			s->x87.fip &= 0xfffff;
			s->x87.fdp &= 0xfffff;
		}
	} else {
		s->x87.fip = words[3];
		s->x87_fcs = (uint16_t)words[4];
		s->x87.fop = words[4] >> 16 & 0x7ff;
		s->x87.fdp = words[5];
		s->x87_fds = (uint16_t)words[6];
	}
}

static unsigned operand_size_of(const struct native_operation *operation)
{
	return operation->form->memory_size == 14 || operation->form->memory_size == 94 ? 2 : 4;
}

bool native_x87_pending(struct vcpu *vcpu)
{
	uint16_t fsw;
	native_x87_load(vcpu);
	__asm__ volatile("fnstsw %0" : "=a"(fsw));
	return fsw & FSW_ES;
}

#define FSW_B      0x8000u
#define FCW_MASKS  0x003fu
#define FCW_MARKER 0x1000u /* infinity control: stored, and without a meaning since the 80387 */

uint16_t native_x87_mask(struct vcpu *vcpu)
{
	struct x87_state *x87 = &vcpu->state.x87;

	native_x87_save(vcpu);
	uint16_t fcw = x87->fcw;
	x87->fcw = (fcw ^ FCW_MARKER) | FCW_MASKS;
	x87->fsw &= (uint16_t) ~(FSW_ES | FSW_B);
	return fcw;
}

void native_x87_unmask(struct vcpu *vcpu, uint16_t fcw)
{
	struct x87_state *x87 = &vcpu->state.x87;

	native_x87_save(vcpu);
	if (x87->fcw != ((fcw ^ FCW_MARKER) | FCW_MASKS))
		return;
	x87->fcw = fcw;
	if (x87->fsw & ~fcw & FCW_MASKS)
		x87->fsw |= FSW_ES | FSW_B;
}

/* The waiting instructions report a pending exception before they do anything. */
void native_x87_check_pending(struct vcpu *vcpu)
{
	if (native_x87_pending(vcpu))
		x86_raise(vcpu, VECTOR_MF);
}

static uint64_t operand_linear(struct vcpu *vcpu, const struct native_operation *operation, bool write)
{
	uint64_t linear =
	    segment_linear(vcpu, operation->segment, operation->offset, operation->form->memory_size, write);
	native_check_alignment(vcpu, linear, operand_size_of(operation));
	return linear;
}

void native_fnstenv(struct vcpu *vcpu, const struct native_operation *operation)
{
	uint64_t linear = operand_linear(vcpu, operation, true);
	struct environment e;
	uint8_t image[28];
	mmu_probe_write(vcpu, linear, operation->form->memory_size);
	native_x87_load(vcpu);
	__asm__ volatile("fnstenv %0" : "=m"(e));
	mmu_write_bytes(vcpu, linear, image, environment_to_image(&vcpu->state, &e, operand_size_of(operation), image));
}

void native_fldenv(struct vcpu *vcpu, const struct native_operation *operation)
{
	native_x87_check_pending(vcpu);
	uint64_t linear = operand_linear(vcpu, operation, false);
	struct environment e;
	uint8_t image[28];
	mmu_read_bytes(vcpu, linear, image, operation->form->memory_size);
	environment_from_image(&vcpu->state, &e, operand_size_of(operation), image);
	__asm__ volatile("fldenv %0" : : "m"(e));
}

void native_fnsave(struct vcpu *vcpu, const struct native_operation *operation)
{
	uint64_t linear = operand_linear(vcpu, operation, true);
	struct saved_state saved;
	uint8_t image[28 + 80];
	mmu_probe_write(vcpu, linear, operation->form->memory_size);
	native_x87_load(vcpu);
	__asm__ volatile("fnsave %0" : "=m"(saved));
	unsigned length = environment_to_image(&vcpu->state, &saved.environment, operand_size_of(operation), image);
	memcpy(image + length, saved.st, sizeof saved.st);
	mmu_write_bytes(vcpu, linear, image, length + sizeof saved.st);
	clear_pointers(&vcpu->state);
}

void native_frstor(struct vcpu *vcpu, const struct native_operation *operation)
{
	native_x87_check_pending(vcpu);
	uint64_t linear = operand_linear(vcpu, operation, false);
	unsigned operand_size = operand_size_of(operation);
	struct saved_state saved;
	uint8_t image[28 + 80];
	mmu_read_bytes(vcpu, linear, image, operation->form->memory_size);
	environment_from_image(&vcpu->state, &saved.environment, operand_size, image);
	memcpy(saved.st, image + 7 * operand_size, sizeof saved.st);
	__asm__ volatile("frstor %0" : : "m"(saved));
}
