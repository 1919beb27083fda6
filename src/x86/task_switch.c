/*
 * Hardware task switching, 16- and 32-bit (SDM 3A chapter 8, "Task Management").
 *
 * Up to the commit point faults leave the old task as it was (#GP, #NP, #TS, #PF in its context). After the new task's
 * registers and selectors are loaded, faults while its descriptors are read belong to the new task: they are raised
 * with the new state in place, so that they are delivered from its first instruction.
 */
#include <string.h>

#include "x86/paging.h"
#include "x86/transfer.h"

#define TSS32_SIZE_MIN 104u
#define TSS16_SIZE_MIN 44u

/* What both formats hold, widened. */
struct tss {
	uint32_t cr3, eip, eflags;
	uint32_t gpr[8];     /* EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI */
	uint16_t segment[6]; /* ES, CS, SS, DS, FS, GS */
	uint16_t ldt;
	bool debug_trap;
};

/* SDM 3A figures 8-2 and 8-10: where the part that is saved lies. */
#define TSS32_EIP 32u
#define TSS32_END 96u /* the LDT selector, which is not saved, is at 96 */
#define TSS16_IP  14u
#define TSS16_END 42u

static void tss_read(struct vcpu *vcpu, struct tss *tss, uint32_t base, bool wide)
{
	uint8_t image[TSS32_SIZE_MIN];
	memset(tss, 0, sizeof(*tss));
	unsigned size = wide ? TSS32_SIZE_MIN : TSS16_SIZE_MIN;
	vcpu->mmu.view = MMU_SUPERVISOR; /* an implicit access (SDM 3A 4.6.1) */
	mmu_read_bytes(vcpu, base, image, size);
	mmu_update_view(vcpu);
	if (wide) {
		uint32_t field[26];
		memcpy(field, image, sizeof(field));
		tss->cr3 = field[7];
		tss->eip = field[8];
		tss->eflags = field[9];
		memcpy(tss->gpr, &field[10], sizeof(tss->gpr));
		for (unsigned i = 0; i < 6; i++)
			tss->segment[i] = (uint16_t)field[18 + i];
		tss->ldt = (uint16_t)field[24];
		tss->debug_trap = field[25] & 1;
	} else {
		uint16_t field[22];
		memcpy(field, image, sizeof(field));
		tss->eip = field[7];
		tss->eflags = field[8];
		for (unsigned i = 0; i < 8; i++)
			tss->gpr[i] =
			    field[9 + i] | 0xffff0000u; /* the upper halves are undefined; Intel's come out as ones */
		for (unsigned i = 0; i < 4; i++)
			tss->segment[i] = field[17 + i];
		tss->ldt = field[21];
	}
}

/* Saves the dynamic fields of the task that is left: EIP to GS. */
static void tss_save(struct vcpu *vcpu, uint32_t base, bool wide, uint64_t eip, uint64_t eflags)
{
	const struct cpu_state *s = &vcpu->state;
	uint8_t image[TSS32_SIZE_MIN];
	uint32_t start, length;
	if (wide) {
		uint32_t field[16] = {(uint32_t)eip, (uint32_t)eflags};
		for (unsigned i = 0; i < 8; i++)
			field[2 + i] = (uint32_t)s->gpr[i];
		for (unsigned i = 0; i < 6; i++)
			field[10 + i] = s->segment[i].selector;
		start = TSS32_EIP;
		length = TSS32_END - TSS32_EIP;
		memcpy(image, field, length);
	} else {
		uint16_t field[14] = {(uint16_t)eip, (uint16_t)eflags};
		for (unsigned i = 0; i < 8; i++)
			field[2 + i] = (uint16_t)s->gpr[i];
		for (unsigned i = 0; i < 4; i++)
			field[10 + i] = s->segment[i].selector;
		start = TSS16_IP;
		length = TSS16_END - TSS16_IP;
		memcpy(image, field, length);
	}
	vcpu->mmu.view = MMU_SUPERVISOR;
	mmu_write_bytes(vcpu, base + start, image, length);
	mmu_update_view(vcpu);
}

/* Error codes of segment loads in the new task: #TS(selector), #NP(selector), #SS(selector). */
static _Noreturn void raise_ts(struct vcpu *vcpu, uint16_t selector, uint32_t ext)
{
	x86_raise_error(vcpu, VECTOR_TS, selector_error(selector, ext));
}

static void load_ldt(struct vcpu *vcpu, uint16_t selector, uint32_t ext)
{
	struct descriptor d;
	if (selector_is_null(selector))
		return;
	if (selector & 4)
		raise_ts(vcpu, selector, ext);
	descriptor_read(vcpu, &d, selector, VECTOR_TS, ext);
	if (!descriptor_is_system(&d) || descriptor_type(&d) != TYPE_LDT || !descriptor_is_present(&d))
		raise_ts(vcpu, selector, ext);
	vcpu->state.segment[SEG_LDTR] = descriptor_segment(&d, selector & 3u);
}

static void load_stack(struct vcpu *vcpu, uint16_t selector, unsigned cpl, uint32_t ext)
{
	struct descriptor d;
	if (selector_is_null(selector))
		raise_ts(vcpu, selector, ext);
	stack_segment_read(vcpu, &d, selector, cpl, ext);
	descriptor_set_accessed(vcpu, &d);
	vcpu->state.segment[SEG_SS] = descriptor_segment(&d, cpl);
}

static void load_code(struct vcpu *vcpu, uint16_t selector, uint32_t ext)
{
	struct descriptor d;
	unsigned rpl = selector & 3u;
	if (selector_is_null(selector))
		raise_ts(vcpu, selector, ext);
	descriptor_read(vcpu, &d, selector, VECTOR_TS, ext);
	unsigned dpl = descriptor_dpl(&d);
	if (!descriptor_is_code(&d) || (descriptor_is_conforming_code(&d) ? dpl > rpl : dpl != rpl))
		raise_ts(vcpu, selector, ext);
	if (!descriptor_is_present(&d))
		x86_raise_error(vcpu, VECTOR_NP, selector_error(selector, ext));
	descriptor_set_accessed(vcpu, &d);
	vcpu->state.segment[SEG_CS] = descriptor_segment(&d, rpl);
}

static void load_data(struct vcpu *vcpu, enum segment_register segment, uint16_t selector, unsigned cpl, uint32_t ext)
{
	struct descriptor d;
	if (selector_is_null(selector))
		return;
	descriptor_read(vcpu, &d, selector, VECTOR_TS, ext);
	uint32_t access = descriptor_access(&d);
	bool readable = (access & SEG_S) && (!(access & SEG_CODE) || (access & SEG_READABLE));
	bool visible =
	    descriptor_is_conforming_code(&d) || (descriptor_dpl(&d) >= cpl && descriptor_dpl(&d) >= (selector & 3u));
	if (!readable || !visible)
		raise_ts(vcpu, selector, ext);
	if (!descriptor_is_present(&d))
		x86_raise_error(vcpu, VECTOR_NP, selector_error(selector, ext));
	descriptor_set_accessed(vcpu, &d);
	vcpu->state.segment[segment] = descriptor_segment(&d, selector & 3u);
}

/* The new task's registers, and selectors with null descriptors; CPL is already that of CS (SDM 3A 8.3). */
static void load_registers(struct vcpu *vcpu, const struct tss *new, bool wide, bool nested)
{
	struct cpu_state *s = &vcpu->state;
	s->rip = new->eip;
	s->rflags = (new->eflags & 0x3f7fd5) | FLAG_ONE | (nested ? FLAG_NT : 0);
	if (!wide)
		s->rflags = (s->rflags & 0xffff);
	for (unsigned i = 0; i < 8; i++)
		s->gpr[i] = new->gpr[i];
	unsigned cpl = s->rflags & FLAG_VM ? 3 : new->segment[SEG_CS] & 3u;
	for (unsigned i = 0; i < 6; i++)
		s->segment[i] =
		    s->rflags & FLAG_VM ? segment_vm86(new->segment[i]) : segment_null(new->segment[i], cpl);
	s->segment[SEG_LDTR] = segment_null(new->ldt, 0);
	mmu_update_view(vcpu);
}

/* False: PAE's page-directory-pointers have a reserved bit set, and CR3 is as it was. */
static bool load_cr3(struct vcpu *vcpu, uint32_t cr3)
{
	struct cpu_state *s = &vcpu->state;
	if (!cpu_paging(s) || s->cr3 == cr3)
		return true;
	if (!paging_load_pdptes(vcpu, cr3))
		return false;
	s->cr3 = cr3;
	mmu_flush_nonglobal(vcpu);
	return true;
}

/* The descriptors of the new task: everything here faults in the new task's context. */
static void load_descriptors(struct vcpu *vcpu, const struct tss *new, uint32_t ext)
{
	struct cpu_state *s = &vcpu->state;
	load_ldt(vcpu, new->ldt, ext);
	if (s->rflags & FLAG_VM)
		return;
	unsigned cpl = new->segment[SEG_CS] & 3u;
	load_stack(vcpu, new->segment[SEG_SS], cpl, ext);
	load_data(vcpu, SEG_DS, new->segment[SEG_DS], cpl, ext);
	load_data(vcpu, SEG_ES, new->segment[SEG_ES], cpl, ext);
	load_data(vcpu, SEG_FS, new->segment[SEG_FS], cpl, ext);
	load_data(vcpu, SEG_GS, new->segment[SEG_GS], cpl, ext);
	load_code(vcpu, new->segment[SEG_CS], ext);
}

#define DR7_LOCAL_ENABLES 0x155u /* L0-L3, LE: cleared by every task switch (SDM 3B 17.2.4) */
#define DR6_TASK_SWITCH   (1ull << 15)

void task_switch(struct vcpu *vcpu, uint16_t tss_selector, enum task_switch reason, uint64_t next_rip, bool has_error,
                 uint32_t error, uint32_t ext)
{
	struct cpu_state *s = &vcpu->state;
	bool returning = reason == TASK_SWITCH_IRET;
	unsigned bad = returning ? VECTOR_TS : VECTOR_GP;
	uint32_t selector_code = selector_error(tss_selector, ext);

	/* The new TSS. */
	struct descriptor target;
	if (selector_is_null(tss_selector) || (tss_selector & 4))
		x86_raise_error(vcpu, bad, selector_code);
	descriptor_read(vcpu, &target, tss_selector, bad, ext);
	unsigned type = descriptor_type(&target);
	bool wide = type & 8;
	if (!descriptor_is_system(&target) || (type & ~(8u | TYPE_BUSY_BIT)) != TYPE_TSS16_AVAILABLE ||
	    !(type & TYPE_BUSY_BIT) != !returning)
		x86_raise_error(vcpu, bad, selector_code);
	if (!descriptor_is_present(&target))
		x86_raise_error(vcpu, VECTOR_NP, selector_code);
	struct segment new_tr = descriptor_segment(&target, tss_selector & 3u);
	if (new_tr.limit < (wide ? TSS32_SIZE_MIN : TSS16_SIZE_MIN) - 1)
		raise_ts(vcpu, tss_selector, ext);
	struct tss new;
	tss_read(vcpu, &new, (uint32_t)new_tr.base, wide);

	/* The old one: everything that will be written must be writable. */
	struct segment old_tr = s->segment[SEG_TR];
	bool old_wide = old_tr.access & 8;
	if ((old_tr.access & SEG_UNUSABLE) || old_tr.limit < (old_wide ? TSS32_SIZE_MIN : TSS16_SIZE_MIN) - 1)
		raise_ts(vcpu, old_tr.selector, ext);
	bool nested = reason == TASK_SWITCH_CALL || reason == TASK_SWITCH_INTERRUPT;
	if (nested)
		mmu_probe_write_system(vcpu, (uint32_t)new_tr.base, 2);
	struct descriptor old = {.selector = old_tr.selector,
	                         .address = (uint32_t)(s->gdtr.base + (old_tr.selector & 0xfff8))};
	if (!nested)
		mmu_probe_write_system(vcpu, (uint32_t)(old.address + 5), 1);
	if (!returning)
		mmu_probe_write_system(vcpu, (uint32_t)(target.address + 5), 1);
	tss_save(vcpu, (uint32_t)old_tr.base, old_wide, next_rip, returning ? s->rflags & ~FLAG_NT : s->rflags);

	/* Commit. */
	if (nested)
		mmu_write_system(vcpu, (uint32_t)new_tr.base, 2, old_tr.selector);
	else
		descriptor_set_busy(vcpu, &old, false);
	if (!returning)
		descriptor_set_busy(vcpu, &target, true);
	new_tr.access |= TYPE_BUSY_BIT;
	s->segment[SEG_TR] = new_tr;
	s->cr0 |= CR0_TS;
	s->dr[7] &= ~(uint64_t)DR7_LOCAL_ENABLES;
	mmu_update_watches(vcpu);
	bool cr3_valid = !wide || load_cr3(vcpu, new.cr3);
	load_registers(vcpu, &new, wide, nested);
	if (!cr3_valid)
		x86_raise_error(vcpu, VECTOR_GP, ext);
	load_descriptors(vcpu, &new, ext);

	/* Here the new task runs. What still faults does so at its first instruction. */
	mmu_update_view(vcpu);
	if (has_error) {
		struct stack stack = stack_current(vcpu, ext);
		const uint64_t value = error;
		stack_push_frame(&stack, &value, 1, wide ? 4 : 2);
		stack_commit(&stack);
	}
	if (s->rip > s->segment[SEG_CS].limit)
		x86_raise_error(vcpu, VECTOR_GP, ext);
	if (new.debug_trap)
		s->pending_debug |= DR6_TASK_SWITCH;
	if (s->pending_debug)
		atomic_fetch_or(&vcpu->attention, ATTENTION_STEP);
	interrupt_window_opened(vcpu);
}

void x86_task_switch(struct vcpu *vcpu, uint16_t tss_selector, enum task_switch reason, uint64_t next_rip,
                     bool has_error, uint32_t error)
{
	task_switch(vcpu, tss_selector, reason, next_rip, has_error, error, 0);
}
