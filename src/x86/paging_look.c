/*
 * The page walk where nothing is to be written and nothing is wrong (paging_look). Built without vector instructions.
 */
#include "memory/memory.h"
#include "x86/page_entries.h"

static const uint64_t *entry_at(const struct memory *memory, uint64_t physical)
{
	if (!memory_is_ram(memory, physical))
		return NULL;
	return (const uint64_t *)memory_ram(memory, physical);
}

bool paging_look(const struct vcpu *vcpu, uint64_t linear, enum mmu_view view, struct paging_result *result)
{
	const struct cpu_state *s = &vcpu->state;
	bool nxe = s->efer & EFER_NXE;
	uint64_t reserved = bits(51, physical_bits(vcpu)) | (nxe ? 0 : PTE_NX), table = s->cr3 & bits(51, 12), entry;
	struct rights rights = {.writable = true, .user = true};
	unsigned shift = 39;

	if (!cpu_long_mode(s) || !cpu_canonical(linear))
		return false;
	for (;; shift -= 9) {
		const uint64_t *host = entry_at(vcpu->memory, table + (linear >> shift & 511) * 8);

		if (!host)
			return false;
		entry = __atomic_load_n(host, __ATOMIC_ACQUIRE);
		if ((entry & (PTE_P | PTE_A)) != (PTE_P | PTE_A) || (entry & reserved))
			return false;
		rights.writable &= (entry & PTE_RW) != 0;
		rights.user &= (entry & PTE_US) != 0;
		rights.no_execute |= (entry & PTE_NX) != 0;
		if (shift == 12)
			break;
		if (entry & PTE_PS) {
			/* Bit 12 is PAT. */
			if (shift == 39 || (shift == 30 && !page1g(vcpu)) || (entry & bits(shift - 1, 13)))
				return false;
			break;
		}
		table = entry & bits(51, 12);
	}
	rights_apply(s, &rights, view, result);
	result->writable &= (entry & PTE_D) != 0;
	result->physical = (entry & bits(51, shift)) | (linear & ((1ull << shift) - 1));
	result->page_size = 1ull << shift;
	result->global = (s->cr4 & CR4_PGE) && (entry & PTE_G);
	result->error = 0;
	return true;
}
