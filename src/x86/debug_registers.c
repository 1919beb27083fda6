/*
 * DR0-DR7 (SDM 3B chapter 17).
 */
#include "x86/exceptions.h"
#include "x86/system.h"

#define DR6_FIXED          0xffff0ff0ull /* read as ones; RTM is not implemented */
#define DR6_WRITABLE       0x0000e00full
#define DR6_GENERAL_DETECT (1ull << 13)
#define DR7_FIXED          0x00000400ull
#define DR7_WRITABLE       0xffff23ffull /* bits 11 (RTM), 12, 14 and 15 read as 0 */
#define DR7_GD             (1ull << 13)

/* DR4 and DR5 are DR6 and DR7, unless CR4.DE says #UD. */
static unsigned resolve(struct vcpu *vcpu, unsigned n)
{
	struct cpu_state *s = &vcpu->state;
	if (n > 7 || ((n == 4 || n == 5) && (s->cr4 & CR4_DE)))
		x86_raise(vcpu, VECTOR_UD);
	if (cpu_cpl(s) != 0)
		x86_raise(vcpu, VECTOR_GP);
	if (s->dr[7] & DR7_GD)
		x86_raise_debug(vcpu, DR6_GENERAL_DETECT);
	return n == 4 || n == 5 ? n + 2 : n;
}

uint64_t x86_mov_from_dr(struct vcpu *vcpu, unsigned n)
{
	return vcpu->state.dr[resolve(vcpu, n)];
}

void x86_mov_to_dr(struct vcpu *vcpu, unsigned n, uint64_t value)
{
	struct cpu_state *s = &vcpu->state;
	n = resolve(vcpu, n);
	if (!cpu_64bit_code(s))
		value = (uint32_t)value;
	if (n >= 6 && value >> 32)
		x86_raise(vcpu, VECTOR_GP);
	if (n == 6)
		value = (value & DR6_WRITABLE) | DR6_FIXED;
	if (n == 7)
		value = (value & DR7_WRITABLE) | DR7_FIXED;
	s->dr[n] = value;
	if (n != 6)
		mmu_update_watches(vcpu);
	if (n == 7 && (value & 0xff)) /* breakpoints armed: the engine looks at each boundary */
		atomic_fetch_or(&vcpu->attention, ATTENTION_STEP);
}
