/*
 * What the translator counts, per vCPU, always; --stats and the debugger's "monitor info stats" print it.
 *
 * A counter costs an increment on a path that is slow anyway. Only `executed` costs time in translated code: it is
 * counted where struct translator's `count_executed` says so (--stats).
 */
#pragma once

#include <Zydis/Zydis.h>
#include <stdint.h>

/* X(field, what it counts): the one list. */
#define TRANSLATOR_COUNTERS(X)                                                                                         \
	X(blocks, "blocks translated")                                                                                 \
	X(floating, "of them floating")                                                                                \
	X(joined, "of them again, seen to be hot later")                                                               \
	X(extended, "of them of several blocks of the interpreter")                                                    \
	X(through_calls, "of them through CALLs")                                                                      \
	X(strayed, "code that CALLs lead to found to be other code")                                                   \
	X(bytes, "host code, bytes")                                                                                   \
	X(bytes_aside, "of them out of line")                                                                          \
	X(instructions, "guest instructions in it")                                                                    \
	X(fallbacks, "instructions in it that the interpreter does")                                                   \
	X(given, "translations left for other processors")                                                             \
	X(taken, "translations taken from other processors")                                                           \
	X(compared, "of them compared with its own")                                                                   \
	X(refused, "blocks left to the interpreter")                                                                   \
	X(put_off, "translations put off until there was room")                                                        \
	X(failed, "translations given up")                                                                             \
	X(executed, "instructions run translated, about")                                                              \
	X(enters, "entries into translated code")                                                                      \
	X(leave_link, "exits: link not made, remapped or stale")                                                       \
	X(leave_indirect, "exits: indirect target not in its cache")                                                   \
	X(found, "indirect targets found by their physical address")                                                   \
	X(returns_full, "calls too deep for the stack of returns")                                                     \
	X(leave_slot, "exits: instruction is the interpreter's")                                                       \
	X(leave_event, "exits: interrupt or request waits")                                                            \
	X(leave_call_out, "exits: what a called-out instruction did")                                                  \
	X(call_outs, "instructions called out, block goes on")                                                         \
	X(sensitive, "sensitive instructions called out, goes on translated")                                          \
	X(leave_vector, "exits: vector registers wanted")                                                              \
	X(raised, "vector registers wanted, loaded at once")                                                           \
	X(leave_fault, "exits: host fault")                                                                            \
	X(slow_miss, "slow accesses: filled the TLB")                                                                  \
	X(filled, "of both, filled without leaving")                                                                   \
	X(probes, "checks of groups that missed")                                                                      \
	X(scattered, "accesses that jump about too much for a range")                                                  \
	X(aliased, "times that neighbouring pages got aliases")                                                        \
	X(alias_drops, "times that all aliases were dropped")                                                          \
	X(apart, "blocks whose accesses share no checks any more")                                                     \
	X(slow_mmio, "slow accesses: not RAM, or debugger watches")                                                    \
	X(slow_watched, "slow accesses: page watched (code)")                                                          \
	X(slow_crossing, "slow accesses: crosses a page")                                                              \
	X(slow_odd, "slow accesses: unaligned vector, non-canonical")                                                  \
	X(slow_fault, "slow accesses: page fault")                                                                     \
	X(invalidate_all, "TLB invalidations: all")                                                                    \
	X(invalidate_nonglobal, "TLB invalidations: not global (CR3)")                                                 \
	X(invalidate_page, "TLB invalidations: one page")                                                              \
	X(switches, "address spaces: loads of another one")                                                            \
	X(watch_requests, "pages watched for code, hand-shakes")                                                       \
	X(stale, "translations of pages written since")                                                                \
	X(advances, "cache: oldest part emptied")                                                                      \
	X(evicted, "cache: blocks that had to go")                                                                     \
	X(flushes, "cache emptied")                                                                                    \
	X(lockstep, "lockstep: units")                                                                                 \
	X(lockstep_uncertain, "lockstep: units not compared")                                                          \
	X(ticks, "time spent translating")

struct translator_counters {
#define X(field, text) uint64_t field;
	TRANSLATOR_COUNTERS(X)
#undef X
	uint64_t fallback[ZYDIS_MNEMONIC_MAX_VALUE + 1]; /* executions that were the interpreter's, by ZydisMnemonic */
};
