/*
 * Private to src/x86: what an entry of the paging structures says (SDM 3A 4.5), and what a view may do with a page.
 */
#pragma once

#include "machine/vcpu.h"
#include "x86/paging.h"
#include "x86/system.h"

#define PTE_P  (1ull << 0)
#define PTE_RW (1ull << 1)
#define PTE_US (1ull << 2)
#define PTE_A  (1ull << 5)
#define PTE_D  (1ull << 6)
#define PTE_PS (1ull << 7)
#define PTE_G  (1ull << 8)
#define PTE_NX (1ull << 63)

static inline unsigned physical_bits(const struct vcpu *vcpu)
{
	return vcpu->model ? vcpu->model->physical_bits : 46;
}

static inline bool page1g(const struct vcpu *vcpu)
{
	return !vcpu->model || vcpu->model->page1g;
}

static inline uint64_t bits(unsigned high, unsigned low)
{
	return high < low ? 0 : (~0ull >> (63 - high)) & (~0ull << low);
}

struct rights {
	bool writable, user, no_execute; /* what all levels together say */
};

/* What the view may do with a page of these rights (SDM 3A 4.6.1). */
static inline void rights_apply(const struct cpu_state *s, const struct rights *r, enum mmu_view view,
                                struct paging_result *result)
{
	bool nx = r->no_execute;
	if (view == MMU_USER) {
		result->readable = r->user;
		result->writable = r->user && r->writable;
		result->executable = r->user && !nx;
		return;
	}
	bool smap = r->user && (s->cr4 & CR4_SMAP) && view == MMU_SUPERVISOR;
	result->readable = !smap;
	result->writable = !smap && (r->writable || !(s->cr0 & CR0_WP));
	result->executable = !nx && !(r->user && (s->cr4 & CR4_SMEP));
}
