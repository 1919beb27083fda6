/*
 * What must agree between the silicon and an engine: everything, but for
 *
 * - flags that the decoder's table calls undefined after the instruction, flags after a fault amid repeated
 * comparisons, and RF, which differs by how the processor was interrupted;
 * - x87 condition codes that the table calls undefined; FOP, FIP and FDP, also inside stored images, unless the
 *   instruction raised an unmasked exception: some processors record them only then;
 * - XSTATE_BV in a stored XSAVE image: which components are in their initial configuration depends on history (SDM 1
 *   13.6);
 * - the present bit in #PF's error code for addresses above user space, which Linux hides;
 * - FXSAVE, XSAVE, FSTENV and their like, loads of far pointers, MOVS and CMPS, may report another of several faults of
 * their operand, and XSAVE and XRSTOR one in a part that they do not touch, because their microcode looks at the whole
 * area first;
 * - after a fault amid several pushes or pops (ENTER, PUSHA, POPA, far CALL), what these have done already;
 * - in 32- and 16-bit code, also when it was entered by the instruction, R8-R15 and the upper halves of the other
 * general registers.
 */
#include <stdarg.h>
#include <string.h>

#include "isa.h"

#define WHAT_SIZE 256u

static const char *const gpr_names[GPR_COUNT] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                                 "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
static const char *const status_names[] = {"exception", "hang", "crash", "system call", "error"};

static void differ(char *what, const char *format, ...)
{
	size_t length = strlen(what);
	va_list arguments;

	if (length + 2 >= WHAT_SIZE)
		return;
	if (length)
		what[length++] = ' ';
	va_start(arguments, format);
	vsnprintf(what + length, WHAT_SIZE - length, format, arguments);
	va_end(arguments);
}

static bool has_error_code(unsigned vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

/* Operands that are read or written in several parts: FXSAVE, XSAVE, FLDENV and their like, far pointers, MOVS, CMPS.
 */
static bool has_parts(const struct isa_decoded *decoded)
{
	switch (decoded->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_CMPSB:
	case ZYDIS_MNEMONIC_CMPSW:
	case ZYDIS_MNEMONIC_CMPSQ:
	case ZYDIS_MNEMONIC_MOVSB:
	case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSQ:
	case ZYDIS_MNEMONIC_BOUND:
	case ZYDIS_MNEMONIC_LDS:
	case ZYDIS_MNEMONIC_LES:
	case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS:
	case ZYDIS_MNEMONIC_LSS:
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FRSTOR:
		return true;
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
		return true;
	case ZYDIS_MNEMONIC_CALL:
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_RET:
		return decoded->instruction.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
	case ZYDIS_MNEMONIC_CMPSD: /* and the SSE instructions of that name, which have no two memory operands */
	case ZYDIS_MNEMONIC_MOVSD:
		return decoded->instruction.meta.category == ZYDIS_CATEGORY_STRINGOP;
	default:
		return decoded->instruction.operand_count && decoded->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		       decoded->operand[0].size > 512;
	}
}

/* Do both report that the operand cannot be reached, each in its own order of looking at the parts of a long one? */
bool isa_same_operand_faults(const struct isa_case *test, const struct isa_decoded *decoded,
                             const struct isa_outcome *native, const struct isa_outcome *guest)
{
	const uint32_t faults = 1u << 12 | 1u << 13 | 1u << 14 | 1u << 17;

	if (!has_parts(decoded) || !(faults >> native->trap & 1))
		return false;
	if (faults >> guest->trap & 1)
		return true;
	/* The silicon looks at all that XSAVE and XRSTOR may touch, not only at what XSTATE_BV names. */
	return decoded->instruction.meta.category == ZYDIS_CATEGORY_XSAVE ||
	               decoded->instruction.meta.category == ZYDIS_CATEGORY_XSAVEOPT
	           ? native->trap == 14 && native->cr2 - test->operand < 4096
	           : false;
}

static void compare_exception(const struct isa_decoded *decoded, const struct isa_outcome *native,
                              const struct isa_outcome *guest, char *what)
{
	if (native->trap != guest->trap) {
		differ(what, "trap(%u/%u)", native->trap, guest->trap);
		return;
	}
	if (!has_error_code(native->trap))
		return;
	uint32_t mask = native->trap == 14 && native->cr2 >= 0x7ffffffff000 ? ~1u : ~0u;
	if ((native->error & mask) != (guest->error & mask))
		differ(what, "error(%#x/%#x)", native->error, guest->error);
	if (native->trap == 14 && native->cr2 != guest->cr2 && !has_parts(decoded))
		differ(what, "cr2");
}

/* Flags that the instruction leaves undefined, on the silicon at hand and in this outcome. */
static uint64_t undefined_flags(const struct isa_decoded *decoded, const struct isa_outcome *native)
{
	const ZydisDecodedInstruction *instruction = &decoded->instruction;
	uint64_t undefined = FLAG_RF | (instruction->cpu_flags ? instruction->cpu_flags->undefined : 0);

	/* A fault amid repeated comparisons: Intel has the flags of before, AMD those of the last iteration (SDM
	 * 1 7.3.9.2). */
	if (instruction->attributes & (ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE) && native->trap != 1 &&
	    native->trap != 3)
		undefined |= FLAG_ARITHMETIC;
	return undefined;
}

/* The host kernel's IRET to the handler clears the RPL of a null selector (SDM 2A, IRET). */
static bool null_selector(uint16_t selector)
{
	return selector < 4;
}

/* A fault amid several pushes or pops: what was pushed below the stack pointer, or popped, before it may stay. */
static bool stopped_amid_pushes(const struct isa_decoded *decoded, const struct isa_outcome *native)
{
	if (native->trap == 1 || native->trap == 3)
		return false;
	switch (decoded->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_CALL:
		return decoded->instruction.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
	case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD:
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD:
		return true;
	default:
		return false;
	}
}

static bool is_popa(const struct isa_decoded *decoded)
{
	return decoded->instruction.mnemonic == ZYDIS_MNEMONIC_POPA ||
	       decoded->instruction.mnemonic == ZYDIS_MNEMONIC_POPAD;
}

static void compare_registers(const struct isa_case *test, const struct isa_decoded *decoded,
                              const struct isa_outcome *native, const struct isa_outcome *guest, char *what)
{
	static const char *const segment_names[] = {"es", "cs", "ss", "ds", "fs", "gs"};
	bool popped = is_popa(decoded) && stopped_amid_pushes(decoded, native);
	bool long_mode = test->mode == 64 && native->selector[SEG_CS] == ISA_SELECTOR_CODE64;
	uint64_t mask = long_mode ? ~0ull : 0xffffffff;
	uint64_t flags = (native->rflags ^ guest->rflags) & ~undefined_flags(decoded, native);

	if ((native->rip ^ guest->rip) & mask)
		differ(what, "rip");
	if (flags)
		differ(what, "rflags(%#x)", (unsigned)flags);
	for (unsigned i = 0; i < (long_mode ? GPR_COUNT : 8u); i++)
		if ((native->gpr[i] ^ guest->gpr[i]) & mask && !(popped && i != RSP))
			differ(what, "%s", gpr_names[i]);
	for (unsigned i = 0; i < 6; i++)
		if (native->selector[i] != guest->selector[i] &&
		    !(null_selector(native->selector[i]) && null_selector(guest->selector[i])))
			differ(what, "%s", segment_names[i]);
	if (test->mode == 64 && native->fs_base != guest->fs_base)
		differ(what, "fsbase");
	if (test->mode == 64 && native->gs_base != guest->gs_base)
		differ(what, "gsbase");
}

static void compare_fpu(const struct isa_case *test, uint16_t undefined, const struct isa_outcome *native,
                        const struct isa_outcome *guest, char *what)
{
	if (native->x87.fcw != guest->x87.fcw)
		differ(what, "fcw");
	/* Surely recorded when the instruction has raised an unmasked exception, whatever else the processor does. */
	if (native->x87.fsw & ~test->x87.fsw & 0x80) {
		if (native->x87.fop != guest->x87.fop)
			differ(what, "fop");
		if (native->x87.fip != guest->x87.fip)
			differ(what, "fip");
		if (test->operand && native->x87.fdp != guest->x87.fdp)
			differ(what, "fdp");
	}
	if ((native->x87.fsw ^ guest->x87.fsw) & ~undefined)
		differ(what, "fsw(%#x)", (native->x87.fsw ^ guest->x87.fsw) & ~undefined);
	if (native->x87.ftw != guest->x87.ftw)
		differ(what, "ftw");
	for (unsigned i = 0; i < 8; i++)
		if (memcmp(native->x87.st[i], guest->x87.st[i], 10))
			differ(what, "st%u", i);
	for (unsigned i = 0; i < 32; i++)
		if (memcmp(native->vector.zmm[i], guest->vector.zmm[i], 64))
			differ(what, "zmm%u", i);
	for (unsigned i = 0; i < 8; i++)
		if (native->vector.opmask[i] != guest->vector.opmask[i])
			differ(what, "k%u", i);
	if (native->vector.mxcsr != guest->vector.mxcsr)
		differ(what, "mxcsr(%#x)", native->vector.mxcsr ^ guest->vector.mxcsr);
}

struct range {
	unsigned offset, length;
};

/* Bytes of a stored image that need not agree (see the head of this file). */
static struct range image_hole(const struct isa_decoded *decoded, unsigned n)
{
	switch (decoded->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FNSAVE:
		if (n == 0)
			return decoded->instruction.operand_width == 16 ? (struct range){6, 8} : (struct range){12, 16};
		break;
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
		if (n == 1)
			return (struct range){512, 1};
		/* fall through */
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
		if (n == 0)
			return (struct range){6, 18};
		break;
	default:
		break;
	}
	return (struct range){0, 0};
}

static bool in_hole(const struct isa_case *test, const struct isa_decoded *decoded, uint64_t linear)
{
	for (unsigned n = 0; n < 2; n++) {
		struct range hole = image_hole(decoded, n);

		if (linear - (test->operand + hole.offset) < hole.length)
			return true;
	}
	return false;
}

static const uint8_t *page_now(const struct isa_outcome *outcome, unsigned page)
{
	return outcome->changed >> page & 1 ? outcome->page[page] : isa_background(page);
}

static void compare_memory(const struct isa_case *test, const struct isa_decoded *decoded,
                           const struct isa_outcome *native, const struct isa_outcome *guest, char *what)
{
	for (unsigned page = 0; page < ISA_PAGES; page++) {
		const uint8_t *a = page_now(native, page), *b = page_now(guest, page);

		if (a == b || !memcmp(a, b, 4096))
			continue;
		for (unsigned i = 0; i < 4096; i++)
			if (a[i] != b[i] && !in_hole(test, decoded, isa_windows[page].linear + i)) {
				differ(what, "memory");
				return;
			}
	}
}

bool isa_compare(const struct isa_case *test, const struct isa_decoded *decoded, const struct isa_outcome *native,
                 const struct isa_outcome *guest, char *what)
{
	const ZydisDecodedInstruction *instruction = &decoded->instruction;

	what[0] = 0;
	if (native->status != STATUS_EXCEPTION || guest->status != STATUS_EXCEPTION) {
		differ(what, "native %s, engine %s %s", status_names[native->status], status_names[guest->status],
		       guest->status == STATUS_ERROR ? guest->text : "");
		return native->status == STATUS_SYSTEM_CALL; /* nothing to learn */
	}
	if (isa_same_operand_faults(test, decoded, native, guest) &&
	    (native->trap != guest->trap || native->rip != guest->rip))
		return true;
	compare_exception(decoded, native, guest, what);
	compare_registers(test, decoded, native, guest, what);
	uint16_t undefined = 0;
	if (instruction->fpu_flags)
		for (unsigned i = 0; i < 4; i++)
			if (instruction->fpu_flags->undefined >> i & 1)
				undefined |= (uint16_t[]){0x100, 0x200, 0x400, 0x4000}[i];
	compare_fpu(test, undefined, native, guest, what);
	if (!stopped_amid_pushes(decoded, native))
		compare_memory(test, decoded, native, guest, what);
	return !what[0];
}

/* ---- printing ---- */

static void print_hex(FILE *file, const uint8_t *bytes, unsigned length)
{
	while (length--)
		fprintf(file, "%02x", bytes[length]);
}

static void print_bytes(FILE *file, const char *name, const uint8_t *before, const uint8_t *native,
                        const uint8_t *guest, unsigned length)
{
	if (!memcmp(native, guest, length))
		return;
	fprintf(file, "    %-7s before ", name);
	print_hex(file, before, length);
	fprintf(file, "\n            silicon ");
	print_hex(file, native, length);
	fprintf(file, "\n            engine  ");
	print_hex(file, guest, length);
	fputc('\n', file);
}

static void print_u64(FILE *file, const char *name, uint64_t before, uint64_t native, uint64_t guest)
{
	if (native != guest)
		fprintf(file, "    %-7s before %#llx silicon %#llx engine %#llx\n", name, (unsigned long long)before,
		        (unsigned long long)native, (unsigned long long)guest);
}

static void print_outcome(FILE *file, const char *name, const struct isa_outcome *outcome)
{
	if (outcome->status != STATUS_EXCEPTION)
		fprintf(file, "    %s: %s %s\n", name, status_names[outcome->status], outcome->text);
	else
		fprintf(file, "    %s: vector %u error %#x cr2 %#llx rip %#llx rflags %#llx\n", name, outcome->trap,
		        outcome->error, (unsigned long long)outcome->cr2, (unsigned long long)outcome->rip,
		        (unsigned long long)outcome->rflags);
}

static void print_memory(FILE *file, const struct isa_outcome *native, const struct isa_outcome *guest)
{
	unsigned shown = 0;

	for (unsigned page = 0; page < ISA_PAGES; page++)
		for (unsigned i = 0; i < 4096; i++) {
			uint8_t a = page_now(native, page)[i], b = page_now(guest, page)[i];

			if (a != b && shown++ < 24)
				fprintf(file, "    [%#llx] silicon %02x engine %02x\n",
				        (unsigned long long)isa_windows[page].linear + i, a, b);
		}
}

void isa_print_failure(FILE *file, const struct isa_case *test, const struct isa_outcome *native,
                       const struct isa_outcome *guest)
{
	char text[128] = "?", name[8];
	struct isa_decoded decoded;
	ZydisFormatter formatter;

	ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
	if (isa_decode(test->mode, test->bytes, test->length, &decoded))
		ZydisFormatterFormatInstruction(&formatter, &decoded.instruction, decoded.operand,
		                                decoded.instruction.operand_count_visible, text, sizeof(text),
		                                test->rip, NULL);
	fprintf(file, "    %u-bit, %s: ", test->mode, test->step ? "single step" : "run to INT3");
	for (unsigned i = 0; i < test->length; i++)
		fprintf(file, "%02x ", test->bytes[i]);
	fprintf(file,
	        " %s\n    rip %#llx rflags %#llx fs %x:%#llx gs %x:%#llx cs %x ss %x ds %x es %x operand %#llx mxcsr "
	        "%#x fcw %#x fsw %#x\n",
	        text, (unsigned long long)test->rip, (unsigned long long)test->rflags, test->selector[SEG_FS],
	        (unsigned long long)test->fs_base, test->selector[SEG_GS], (unsigned long long)test->gs_base,
	        test->selector[SEG_CS], test->selector[SEG_SS], test->selector[SEG_DS], test->selector[SEG_ES],
	        (unsigned long long)test->operand, test->vector.mxcsr, test->x87.fcw, test->x87.fsw);
	for (unsigned i = 0; i < GPR_COUNT; i++)
		fprintf(file, "%s%s=%llx%s", i % 8 ? " " : "    ", gpr_names[i], (unsigned long long)test->gpr[i],
		        i % 8 == 7 ? "\n" : "");
	print_outcome(file, "silicon", native);
	print_outcome(file, "engine ", guest);
	if (guest->setting)
		fprintf(file, "    engine: %s\n",
		        (const char *const[]){"", "hot", "jumped to from another page",
		                              "through a link from another page", "jumped to from its page",
		                              "through a link from its page"}[guest->setting]);
	for (unsigned i = 0; i < GPR_COUNT; i++)
		print_u64(file, gpr_names[i], test->gpr[i], native->gpr[i], guest->gpr[i]);
	print_u64(file, "fsbase", test->fs_base, native->fs_base, guest->fs_base);
	print_u64(file, "gsbase", test->gs_base, native->gs_base, guest->gs_base);
	print_u64(file, "fcw", test->x87.fcw, native->x87.fcw, guest->x87.fcw);
	print_u64(file, "fsw", test->x87.fsw, native->x87.fsw, guest->x87.fsw);
	print_u64(file, "ftw", test->x87.ftw, native->x87.ftw, guest->x87.ftw);
	print_u64(file, "mxcsr", test->vector.mxcsr, native->vector.mxcsr, guest->vector.mxcsr);
	for (unsigned i = 0; i < 6; i++)
		print_u64(file, "sreg", test->selector[i], native->selector[i], guest->selector[i]);
	for (unsigned i = 0; i < 8; i++) {
		snprintf(name, sizeof(name), "k%u", i);
		print_u64(file, name, test->vector.opmask[i], native->vector.opmask[i], guest->vector.opmask[i]);
		snprintf(name, sizeof(name), "st%u", i);
		print_bytes(file, name, test->x87.st[i], native->x87.st[i], guest->x87.st[i], 10);
	}
	for (unsigned i = 0; i < 32; i++) {
		snprintf(name, sizeof(name), "zmm%u", i);
		print_bytes(file, name, test->vector.zmm[i], native->vector.zmm[i], guest->vector.zmm[i], 64);
	}
	print_memory(file, native, guest);
}
