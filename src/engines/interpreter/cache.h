/*
 * The cache of decoded blocks: one per vCPU, bounded, found by guest-physical address and mode. The oldest part makes
 * room when it is full.
 */
#pragma once

#include <Zydis/Zydis.h>

#include "engines/interpreter/insn.h"

#define BLOCK_INSTRUCTIONS_MAX 64

/* `share`: of --code-cache, for this processor, translations included; 0: a size of its own. 0 or -ENOMEM. */
int block_cache_create(struct interpreter *interpreter, uint64_t share);
void block_cache_destroy(struct interpreter *interpreter);
/* Forgets all blocks and links, and the host-executed forms when their arena is nearly full. Not while a block runs. */
void block_cache_flush(struct vcpu *vcpu);
/*
 * The vCPU is about to sleep, at host time `now` in ns and `tsc`. When it has been idle for two windows of REST_WINDOW and
 * much is kept, all of it goes, translations too, and the host has the memory; what is needed again is decoded again. True: so
 * it was. Not while a block runs.
 */
#define REST_WINDOW 5000000000ull /* ns */
#define REST_BUSY   32            /* busy for less than one part of so many: idle */
#define REST_KEPT   (4u << 20)    /* bytes of decoded blocks that are not worth it */
bool block_cache_rest(struct vcpu *vcpu, uint64_t now, uint64_t tsc);

/*
 * The block at state.rip for interpreter->mode, decoded if need be. Raises what a fetch raises (#PF, #GP); executing is
 * NULL and state.rip exact. NULL: out of memory for a single block, which cannot happen.
 */
struct block *block_find(struct vcpu *vcpu);
/* The block at this physical address for interpreter->mode, if it was decoded and its page was not written since; or NULL. */
struct block *block_known(struct vcpu *vcpu, uint64_t physical);
/* A decoder of 16-, 32- or 64-bit code (MODE_SIZE) as a CPU of this model sees it (NULL: of no particular one). */
void guest_decoder_init(ZydisDecoder *decoder, unsigned mode, const struct cpu_model *model);
/* May transfers be linked to this block? */
bool block_linkable(const struct interpreter *interpreter, const struct block *block);
