/*
 * Finding, decoding and keeping blocks (cache.h).
 *
 * The arena is a ring of parts. A part fills from below with blocks and from above with what block_allocate() gives out;
 * when it is full the oldest part is emptied for what comes next. A dead block (its page was written) stays where it is
 * until then, but its bytes are compared first: often the page was written elsewhere.
 */
#include "engines/interpreter/cache.h"
#include "engines/translator/translator.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include "debug/trace.h"
#include "engines/interpreter/decode.h"
#include "host/busy_wait.h"
#include "host/table_memory.h"
#include "x86/system.h"

#define ARENA_BYTES (12u << 20) /* without --code-cache, and the interpreter's own */
#define SHARE       18          /* with it: 32nds of a processor's part (the rest: translator/regions.c) */
#define REGION      (1u << 19)  /* about */
#define REGIONS_MAX 128
#define GIVE_BACK   (1u << 20)
#define HASH_BITS   17
#define HASH_SIZE   (1u << HASH_BITS)
#define HASH_BYTES  (HASH_SIZE * sizeof(struct block *))
#define SLOTS_MAX   (4 * BLOCK_INSTRUCTIONS_MAX + 2)
#define BYTES_MAX   (BLOCK_INSTRUCTIONS_MAX * ZYDIS_MAX_INSTRUCTION_LENGTH)
#define RESERVE     (sizeof(struct block) + SLOTS_MAX * sizeof(struct insn) + BYTES_MAX + 64 * 128)
#define USAGE_FULL  90 /* percent of the native arena */
#define USAGE_CHECK 64 /* look at it once in so many blocks */

/*
 * Data in a page of code, written and run by turns by several processors: each turn is a hand-shake with all of them, which
 * takes long where they outnumber the host's. When a page has cost too much its code is not kept for a while, but
 * decoded instruction by instruction, unwatched, as code outside RAM.
 */
#define RESTLESS_PAGES  32
#define RESTLESS_WINDOW 200000000ull /* ns */
#define RESTLESS_COST   40000000ull  /* ns of hand-shakes in a window that are too much */
#define RESTLESS_TIME   100000000ull /* ns without being kept */

struct restless {
	uint64_t page, start, spent, until; /* host time in ns */
};

struct block_cache {
	struct restless restless[RESTLESS_PAGES]; /* by page number */
	uint64_t restless_until;                  /* the last of them; 0: none */
	uint8_t *arena;
	size_t size;      /* of the arena, in `regions` parts of which the oldest makes room for the newest */
	size_t low, high; /* of the part in use: used below low and from high on */
	unsigned regions, now;
	struct block *blocks[REGIONS_MAX]; /* that are kept in each part */
	struct block **hash;               /* HASH_SIZE; the arena is behind it */
	ZydisDecoder decoder[3];           /* by MODE_SIZE */
	unsigned since_check;
	/* block_cache_rest(): when the window began, by both clocks, and the vCPU's run_ticks then. */
	uint64_t window_start, window_tsc, window_ran;
	unsigned idle_windows;
	_Atomic uint32_t no_generation; /* of code that is not in RAM: always 0 */
};

static void begin(struct block_cache *cache, unsigned n)
{
	size_t part = cache->size / cache->regions & ~(size_t)63;

	cache->now = n;
	cache->low = n * part;
	cache->high = cache->low + part;
}

int block_cache_create(struct interpreter *interpreter, uint64_t share)
{
	struct block_cache *cache = calloc(1, sizeof(*cache));

	if (!cache)
		return -ENOMEM;
	cache->size = share ? (share / 32 * SHARE & ~(uint64_t)4095) : ARENA_BYTES;
	size_t regions = cache->size / REGION;
	cache->regions = regions < 2 ? 2 : regions > REGIONS_MAX ? REGIONS_MAX : (unsigned)regions;
	cache->hash = table_map(HASH_BYTES + cache->size, false);
	if (!cache->hash) {
		free(cache);
		return -ENOMEM;
	}
	cache->arena = (uint8_t *)cache->hash + HASH_BYTES;
	begin(cache, 0);
	interpreter->cache = cache;
	return 0;
}

void block_cache_destroy(struct interpreter *interpreter)
{
	if (!interpreter->cache)
		return;
	table_unmap(interpreter->cache->hash, HASH_BYTES + interpreter->cache->size);
	free(interpreter->cache);
	interpreter->cache = NULL;
}

/* Follows the guest's CPU where vendors and models differ. */
void guest_decoder_init(ZydisDecoder *decoder, unsigned mode, const struct cpu_model *model)
{
	static const struct {
		ZydisMachineMode mode;
		ZydisStackWidth stack;
	} modes[3] = {
	    {ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16},
	    {ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32},
	    {ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64},
	};

	ZydisDecoderInit(decoder, modes[mode].mode, modes[mode].stack);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_AMD_BRANCHES, model && model->amd);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_LZCNT, !model || model->lzcnt);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_TZCNT, !model || model->bmi1);
}

void block_cache_flush(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	struct block_cache *cache = interpreter->cache;

	if (cache->now > 0 || cache->low > GIVE_BACK) /* the host gets its memory back */
		madvise(cache->arena, cache->size, MADV_DONTNEED);
	begin(cache, 0);
	memset(cache->blocks, 0, sizeof(cache->blocks));
	memset(cache->hash, 0, HASH_BYTES);
	memset(interpreter->jump_cache, 0, sizeof(interpreter->jump_cache));
	interpreter->pending = NULL;
	interpreter->cache_full = false;
	if (interpreter->translator)
		translator_flush(interpreter->translator);
	for (unsigned mode = 0; mode < 3; mode++)
		guest_decoder_init(&cache->decoder[mode], mode, vcpu->model);
	/* The model or the forms' number may have asked for this: start afresh. */
	if (interpreter->native && native_usage(interpreter->native) >= USAGE_FULL / 2)
		native_flush(interpreter->native);
}

void *block_allocate(struct decoder *d, size_t bytes)
{
	struct block_cache *cache = d->interpreter->cache;

	bytes = (bytes + 15) & ~(size_t)15;
	/* RESERVE was free when the block was begun, and foresees this. */
	if (cache->high < cache->low + bytes)
		return NULL;
	cache->high -= bytes;
	return cache->arena + cache->high;
}

bool block_cache_rest(struct vcpu *vcpu, uint64_t now, uint64_t tsc)
{
	struct block_cache *cache = interpreter_of(vcpu)->cache;
	uint64_t ran = vcpu->counters.run_ticks - cache->window_ran, ticks = tsc - cache->window_tsc;

	if (now - cache->window_start < REST_WINDOW)
		return false;
	cache->idle_windows = ran < ticks / REST_BUSY ? cache->idle_windows + 1 : 0;
	cache->window_start = now;
	cache->window_tsc = tsc;
	cache->window_ran = vcpu->counters.run_ticks;
	if (interpreter_of(vcpu)->translator)
		translator_rest_shared(interpreter_of(vcpu)->translator, cache->idle_windows >= 2);
	/* Once around, all parts have something. */
	bool much = cache->blocks[cache->regions - 1] || cache->low > REST_KEPT;
	if (cache->idle_windows < 2 || !much)
		return false;
	cache->idle_windows = 0;
	vcpu->counters.rests++;
	block_cache_flush(vcpu);
	return true;
}

static unsigned hash_of(uint64_t physical, uint32_t mode);

/* All links between blocks are void, at once: some lead to blocks that go. */
static void void_links(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);

	if ((++interpreter->linked_epoch & 0xffff) == 0)
		mmu_forget(vcpu);
	vcpu->code_context =
	    mmu_code_epoch(vcpu) << 24 | (interpreter->linked_epoch & 0xffff) << 8 | (vcpu->code_context & 0xff);
	interpreter->pending = NULL;
}

/* The oldest part is emptied and taken into use. Not while a block runs. */
static void advance(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	struct block_cache *cache = interpreter->cache;
	unsigned next = (cache->now + 1) % cache->regions;
	uint64_t before = __rdtsc();

	for (struct block *block = cache->blocks[next]; block; block = block->next_in_part) {
		struct block **link = &cache->hash[hash_of(block->physical, block->mode)];

		while (*link && *link != block)
			link = &(*link)->next;
		if (*link)
			*link = block->next;
		if (interpreter->translator)
			translator_block_gone(interpreter->translator, block);
		vcpu->counters.block_evictions++;
	}
	cache->blocks[next] = NULL;
	begin(cache, next);
	void_links(vcpu);
	if (interpreter->translator)
		translator_note_eviction(interpreter->translator, __rdtsc() - before);
}

static unsigned hash_of(uint64_t physical, uint32_t mode)
{
	uint64_t key = physical ^ (uint64_t)mode << 40;

	return (unsigned)(key * 0x9e3779b97f4a7c15ull >> (64 - HASH_BITS));
}

/* Fetching. */

static uint64_t linear_of(struct vcpu *vcpu)
{
	const struct cpu_state *s = &vcpu->state;

	if (cpu_64bit_code(s)) {
		if (!cpu_canonical(s->rip))
			x86_raise(vcpu, VECTOR_GP);
		return s->rip;
	}
	if (s->rip > s->segment[SEG_CS].limit)
		x86_raise(vcpu, VECTOR_GP);
	return (uint32_t)(s->segment[SEG_CS].base + s->rip);
}

/* Copies `length` bytes of code within one page. */
static void fetch(struct vcpu *vcpu, uint64_t physical, uint8_t *buffer, unsigned length)
{
	const uint8_t *host = memory_pointer(vcpu->memory, physical, length);
	unsigned i = 0;

	for (; host && i + 8 <= length; i += 8) {
		uint64_t bytes = *(const volatile guest_64 *)(host + i);

		memcpy(buffer + i, &bytes, 8);
	}
	for (; i < length; i++)
		buffer[i] = host ? ((const volatile uint8_t *)host)[i] : (uint8_t)vcpu_mmio_read(vcpu, physical + i, 1);
}

/* A hand-shake for the page began at `before`. */
static void note_cost(struct block_cache *cache, uint64_t page, uint64_t before)
{
	struct restless *r = &cache->restless[page % RESTLESS_PAGES];
	uint64_t now = busy_wait_now();

	if (r->page != page || now - r->start > RESTLESS_WINDOW)
		*r = (struct restless){.page = page, .start = before};
	r->spent += now - before;
	if (r->spent > RESTLESS_COST)
		cache->restless_until = r->until = now + RESTLESS_TIME;
}

static bool is_restless(struct block_cache *cache, uint64_t page)
{
	const struct restless *r = &cache->restless[page % RESTLESS_PAGES];
	uint64_t now = busy_wait_now();

	if (now >= cache->restless_until)
		cache->restless_until = 0;
	return r->page == page && now < r->until;
}

/*
 * Watches a page that code is about to be decoded from. Translated code stores without looking at the page's flags: the
 * first watch takes the write entries away from all vCPUs before the bytes are read, and whoever comes second waits for
 * that.
 */
static uint32_t watch_code(struct vcpu *vcpu, uint64_t physical)
{
	struct translator *translator = interpreter_of(vcpu)->translator;
	struct memory *memory = vcpu->memory;

	if (!translator)
		return memory_watch_code(memory, physical);
	atomic_fetch_add(&memory->watch_handshakes, 1);
	/* Only who set the flag knows: the page may have been watched, written and forgotten just now. */
	bool first = false;
	uint32_t generation = memory_watch_code_first(memory, physical, &first);
	if (first) {
		uint64_t before = busy_wait_now();

		translator_page_watched(translator);
		note_cost(interpreter_of(vcpu)->cache, physical >> MEMORY_PAGE_SHIFT, before);
	}
	atomic_fetch_sub(&memory->watch_handshakes, 1);
	for (uint64_t since = 0; !first && atomic_load(&memory->watch_handshakes);)
		busy_wait_thread(&since);
	return generation;
}

struct fetched {
	uint64_t linear, physical;
	unsigned available; /* bytes up to the page's end, no more than a block can use */
	uint8_t bytes[BYTES_MAX + ZYDIS_MAX_INSTRUCTION_LENGTH];
};

static ZyanStatus decode_at(struct decoder *d, const uint8_t *bytes, unsigned length)
{
	const ZydisDecoder *decoder = &d->interpreter->cache->decoder[d->mode & MODE_SIZE];

	d->bytes = bytes;
	return ZydisDecoderDecodeFull(decoder, bytes,
	                              length < ZYDIS_MAX_INSTRUCTION_LENGTH ? length : ZYDIS_MAX_INSTRUCTION_LENGTH,
	                              &d->instruction, d->operand);
}

/* Emits the instruction that `status` speaks of. False: more bytes are needed. */
static bool emit_decoded(struct decoder *d, ZyanStatus status, unsigned length)
{
	if (ZYAN_SUCCESS(status)) {
		decode_instruction(d);
		return true;
	}
	if (status == ZYDIS_STATUS_NO_MORE_DATA && length < ZYDIS_MAX_INSTRUCTION_LENGTH)
		return false;
	d->instruction.length = 0;
	d->block->crosses = true; /* the bytes that were looked at are not known: never revived, never chained */
	d->block->second_page = ~0ull;
	if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG || status == ZYDIS_STATUS_NO_MORE_DATA)
		emit_too_long(d);
	else
		emit_invalid(d);
	return true;
}

/* The block's only instruction goes on in the next page: fetches that, which may fault, and watches both. */
static void decode_crossing(struct vcpu *vcpu, struct decoder *d, struct fetched *fetched)
{
	struct block *block = d->block;
	uint64_t next_page = (fetched->linear | 0xfff) + 1, physical;
	unsigned more = ZYDIS_MAX_INSTRUCTION_LENGTH - fetched->available;

	if (!cpu_long_mode(&vcpu->state))
		next_page = (uint32_t)next_page;
	if (!cpu_canonical(next_page))
		x86_raise(vcpu, VECTOR_GP);
	mmu_entry(vcpu, next_page, MMU_EXECUTE, &physical);
	block->crosses = true;
	block->second_page = physical;
	if (memory_is_ram(vcpu->memory, physical))
		block->second_generation = watch_code(vcpu, physical);
	fetch(vcpu, physical, fetched->bytes + fetched->available, more);
	ZyanStatus status = decode_at(d, fetched->bytes, ZYDIS_MAX_INSTRUCTION_LENGTH);
	emit_decoded(d, status, ZYDIS_MAX_INSTRUCTION_LENGTH);
}

static void decode_instructions(struct vcpu *vcpu, struct decoder *d, struct fetched *fetched)
{
	unsigned limit = d->mode & MODE_STEP ? 1 : BLOCK_INSTRUCTIONS_MAX;

	while (!d->terminal && d->number < limit) {
		unsigned left = fetched->available - d->offset;
		if (!left)
			break;
		ZyanStatus status = decode_at(d, fetched->bytes + d->offset, left);
		if (!emit_decoded(d, status, left)) {
			if (d->number == 0) {
				decode_crossing(vcpu, d, fetched);
				d->offset = d->instruction.length;
				d->number = 1;
			}
			break;
		}
		d->offset += d->instruction.length;
		d->number++;
	}
	d->block->length = (uint16_t)d->offset;
	d->block->count = (uint16_t)d->number;
	d->block->open = !d->terminal;
	if (!d->terminal)
		emit_block_end(d);
}

static struct block *decode_block(struct vcpu *vcpu, uint64_t linear, uint64_t physical, bool ram)
{
	uint64_t started = __rdtsc();
	struct interpreter *interpreter = interpreter_of(vcpu);
	struct block_cache *cache = interpreter->cache;
	struct fetched fetched = {.linear = linear, .physical = physical};

	if (interpreter->native && ++cache->since_check % USAGE_CHECK == 0 &&
	    native_usage(interpreter->native) >= USAGE_FULL)
		block_cache_flush(vcpu);
	else if (cache->high - cache->low < RESERVE)
		advance(vcpu);
	struct block *block = (struct block *)(cache->arena + cache->low);
	memset(block, 0, sizeof(*block));
	block->mode = (uint8_t)interpreter->mode;
	block->physical = physical;
	block->generation_now =
	    ram ? &vcpu->memory->code_generation[physical >> MEMORY_PAGE_SHIFT] : &cache->no_generation;
	block->generation = ram ? watch_code(vcpu, physical) : 0;
	fetched.available = MEMORY_PAGE_SIZE - (unsigned)(physical & (MEMORY_PAGE_SIZE - 1));
	if (fetched.available > BYTES_MAX)
		fetched.available = BYTES_MAX;
	if (!ram && fetched.available > ZYDIS_MAX_INSTRUCTION_LENGTH)
		fetched.available = ZYDIS_MAX_INSTRUCTION_LENGTH;
	fetch(vcpu, physical, fetched.bytes, fetched.available);

	struct decoder d = {
	    .vcpu = vcpu,
	    .interpreter = interpreter,
	    .mode = interpreter->mode,
	    .block = block,
	    .next = block->insn,
	};
	if (interpreter->translator && translator_mode(interpreter->mode) && ram)
		emit(&d, translator_heat);
	/* Neither code that is not RAM (its bytes may change unseen) nor a block that a segment's limit may cut is
	 * kept. */
	bool keep = ram;
	decode_instructions(vcpu, &d, &fetched);
	uint8_t *copy = (uint8_t *)d.next;
	memcpy(copy, fetched.bytes, block->length);
	block->bytes = copy;
	vcpu->counters.blocks_decoded++;
	vcpu->counters.decode_ticks += __rdtsc() - started;
	if (keep) {
		struct block **head = &cache->hash[hash_of(physical, block->mode)];
		cache->low = (size_t)(copy + block->length - cache->arena + 63) & ~(size_t)63;
		block->next = *head;
		*head = block;
		block->next_in_part = cache->blocks[cache->now];
		cache->blocks[cache->now] = block;
	}
	return block;
}

/* Has a second page, in RAM. */
static bool goes_on(const struct vcpu *vcpu, const struct block *block)
{
	return block->crosses && block->second_page != ~0ull && memory_is_ram(vcpu->memory, block->second_page);
}

static bool written(const struct vcpu *vcpu, const struct block *block)
{
	return *block->generation_now != block->generation ||
	       (goes_on(vcpu, block) &&
	        block->second_generation != memory_code_generation(vcpu->memory, block->second_page));
}

/* A page was written since: if the block's own bytes are still the same, it lives on. */
static bool revive(struct vcpu *vcpu, struct block *block)
{
	unsigned first = MEMORY_PAGE_SIZE - (unsigned)(block->physical & (MEMORY_PAGE_SIZE - 1));
	uint8_t bytes[BYTES_MAX];
	uint32_t second = 0;

	if (block->crosses && !goes_on(vcpu, block))
		return false;
	uint32_t generation = watch_code(vcpu, block->physical);
	if (block->crosses) {
		second = watch_code(vcpu, block->second_page);
		fetch(vcpu, block->physical, bytes, first);
		fetch(vcpu, block->second_page, bytes + first, block->length - first);
	} else {
		fetch(vcpu, block->physical, bytes, block->length);
	}
	if (memcmp(bytes, block->bytes, block->length) != 0)
		return false;
	block->generation = generation;
	block->second_generation = second;
	return true;
}

/* Not mapped otherwise; may raise. */
static bool second_page_valid(struct vcpu *vcpu, const struct block *block, uint64_t linear)
{
	uint64_t next_page = (linear | 0xfff) + 1, physical;

	if (!cpu_long_mode(&vcpu->state))
		next_page = (uint32_t)next_page;
	mmu_entry(vcpu, next_page, MMU_EXECUTE, &physical);
	return physical == block->second_page;
}

static struct block *look_up(struct vcpu *vcpu, uint64_t linear, uint64_t physical)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	struct block **link = &interpreter->cache->hash[hash_of(physical, interpreter->mode)];

	for (struct block *block; (block = *link) != NULL; link = &block->next) {
		if (block->physical != physical || block->mode != interpreter->mode)
			continue;
		if ((written(vcpu, block) && !revive(vcpu, block)) ||
		    (block->crosses && block->second_page != ~0ull && !second_page_valid(vcpu, block, linear))) {
			vcpu->counters.block_invalidations++;
			*link = block->next;
			return NULL;
		}
		return block;
	}
	return NULL;
}

struct block *block_known(struct vcpu *vcpu, uint64_t physical)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	struct block *block = interpreter->cache->hash[hash_of(physical, interpreter->mode)];

	while (block && (block->physical != physical || block->mode != interpreter->mode ||
	                 atomic_load(block->generation_now) != block->generation))
		block = block->next;
	return block;
}

/* Outside flat and 64-bit code the segment's limit may cut a block: then instruction by instruction. */
static bool beyond_limit(struct vcpu *vcpu, const struct block *block)
{
	uint32_t mode = block->mode;

	if ((mode & MODE_SIZE) == MODE_64 || (mode & MODE_FLAT) || !block->length)
		return false;
	return vcpu->state.rip + block->length - 1 > vcpu->state.segment[SEG_CS].limit;
}

struct block *block_find(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	uint64_t linear = linear_of(vcpu), physical;
	bool ram = mmu_entry(vcpu, linear, MMU_EXECUTE, &physical) || memory_is_ram(vcpu->memory, physical);
	struct block_cache *cache = interpreter->cache;

	if (ram && unlikely(cache->restless_until) && is_restless(cache, physical >> MEMORY_PAGE_SHIFT))
		ram = false;
	struct block *block = ram ? look_up(vcpu, linear, physical) : NULL;

	if (mmu_note_code(vcpu, linear))
		interpreter->refresh = true;
	if (!block) {
		if (!ram) {
			interpreter->mode |= MODE_STEP;
			interpreter->refresh = true;
		}
		block = decode_block(vcpu, linear, physical, ram);
	}
	if (unlikely(beyond_limit(vcpu, block))) {
		if (block->mode & MODE_STEP)
			x86_raise(vcpu, VECTOR_GP);
		interpreter->mode |= MODE_STEP;
		interpreter->refresh = true;
		return block_find(vcpu);
	}
	return block;
}

bool block_linkable(const struct interpreter *interpreter, const struct block *block)
{
	return !block->crosses && !(block->mode & MODE_STEP);
}
