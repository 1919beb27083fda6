/*
 * All instruction forms of the decoder's table, found by trying every encoding and keeping each one that the decoder
 * names differently: mnemonic, operands (kind, size, where encoded), vector length, masking, broadcast, rounding, LOCK
 * and REP.
 */
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "isa.h"

#define PREFIX_66   0x01u
#define PREFIX_F2   0x02u
#define PREFIX_F3   0x04u
#define PREFIX_LOCK 0x08u
#define PREFIX_67   0x10u

#define DEFINING_ATTRIBUTES                                                                                            \
	(ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)

/* ---- decoding ---- */

static ZydisDecoder decoders[3]; /* 64, 32, 16 */
static pthread_once_t decoders_once = PTHREAD_ONCE_INIT;

static void decoders_init(void)
{
	unsigned eax, ebx = 0, ecx, edx;
	bool amd = __get_cpuid(0, &eax, &ebx, &ecx, &edx) && (ebx == 0x68747541 || ebx == 0x6f677948); /* Auth, Hygo */

	ZydisDecoderInit(&decoders[0], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	ZydisDecoderInit(&decoders[1], ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
	ZydisDecoderInit(&decoders[2], ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_32);
	for (unsigned i = 0; i < 3; i++) {
		ZydisDecoderEnableMode(&decoders[i], ZYDIS_DECODER_MODE_AMD_BRANCHES, amd);
		ZydisDecoderEnableMode(&decoders[i], ZYDIS_DECODER_MODE_MPX, false);
	}
}

bool isa_decode(unsigned mode, const uint8_t *bytes, size_t length, struct isa_decoded *decoded)
{
	pthread_once(&decoders_once, decoders_init);
	return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoders[mode == 64   ? 0
	                                                     : mode == 32 ? 1
	                                                                  : 2],
	                                           bytes, length, &decoded->instruction, decoded->operand));
}

static void key_add(uint64_t *key, uint64_t value)
{
	*key = random_mix(*key * 0x100000001b3ull + value + 1);
}

uint64_t isa_form_key(unsigned mode, const struct isa_decoded *decoded)
{
	const ZydisDecodedInstruction *i = &decoded->instruction;
	uint64_t key = 0x1d9;
	uint8_t opcode = i->opcode;

	for (unsigned n = 0; n < i->operand_count; n++)
		if (decoded->operand[n].encoding == ZYDIS_OPERAND_ENCODING_OPCODE)
			opcode &= 0xf8;
	key_add(&key, mode);
	key_add(&key, i->encoding);
	key_add(&key, i->opcode_map);
	key_add(&key, opcode);
	key_add(&key, i->mnemonic);
	key_add(&key, i->attributes & DEFINING_ATTRIBUTES);
	key_add(&key, i->avx.vector_length);
	key_add(&key, i->avx.mask.mode);
	key_add(&key, i->avx.broadcast.mode);
	key_add(&key, i->avx.rounding.mode != ZYDIS_ROUNDING_MODE_INVALID);
	key_add(&key, i->avx.has_sae);
	for (unsigned n = 0; n < i->operand_count; n++) {
		const ZydisDecodedOperand *operand = &decoded->operand[n];

		key_add(&key, operand->type);
		key_add(&key, operand->size);
		if (operand->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			continue;
		key_add(&key, operand->encoding);
		switch (operand->type) {
		case ZYDIS_OPERAND_TYPE_REGISTER:
			key_add(&key, operand->encoding == ZYDIS_OPERAND_ENCODING_NONE
			                  ? operand->reg.value
			                  : 0x1000u + ZydisRegisterGetClass(operand->reg.value));
			break;
		case ZYDIS_OPERAND_TYPE_MEMORY:
			key_add(&key, operand->mem.type);
			break;
		case ZYDIS_OPERAND_TYPE_IMMEDIATE:
			key_add(&key, operand->encoding == ZYDIS_OPERAND_ENCODING_NONE ? operand->imm.value.u : 0);
			break;
		default:
			break;
		}
	}
	return key;
}

/* ---- encoding ---- */

/* The fields of one encoding that a form leaves open. */
struct fields {
	uint8_t prefix; /* PREFIX_* or pp */
	uint8_t w, l, b, aaa, z;
	uint8_t reg, rm, mod;       /* 3 bits, 2 bits */
	uint8_t r, x, base, r2, v2; /* the extension bits, not inverted */
	uint8_t vvvv;               /* not inverted */
	uint8_t sib;
	bool rex, address_size, short_vex;
	int segment; /* override byte or 0 */
	int junk;    /* an extra prefix byte or 0 */
	unsigned shuffle;
};

static unsigned legacy_prefixes(const struct fields *f, bool legacy, uint8_t *out)
{
	uint8_t prefix[8];
	unsigned count = 0;

	if (f->junk)
		prefix[count++] = (uint8_t)f->junk;
	if (f->segment)
		prefix[count++] = (uint8_t)f->segment;
	if (f->address_size || (legacy && f->prefix & PREFIX_67))
		prefix[count++] = 0x67;
	if (legacy) {
		if (f->prefix & PREFIX_66)
			prefix[count++] = 0x66;
		if (f->prefix & PREFIX_F2)
			prefix[count++] = 0xf2;
		if (f->prefix & PREFIX_F3)
			prefix[count++] = 0xf3;
		if (f->prefix & PREFIX_LOCK)
			prefix[count++] = 0xf0;
	}
	for (unsigned i = 0; i < count; i++)
		out[i] = prefix[(i + f->shuffle) % count];
	return count;
}

/* Writes prefixes, opcode, ModRM and SIB; returns the length. What follows is displacement and immediate. */
static unsigned assemble(unsigned mode, enum isa_encoding encoding, unsigned map, uint8_t opcode, bool modrm,
                         const struct fields *f, uint8_t out[32])
{
	unsigned n = legacy_prefixes(f, encoding == ENCODING_LEGACY, out);
	uint8_t vvvv = (uint8_t)(~f->vvvv & 15);

	switch (encoding) {
	case ENCODING_LEGACY:
		if (mode == 64 && (f->rex || f->w || f->r || f->x || f->base))
			out[n++] = (uint8_t)(0x40 | f->w << 3 | f->r << 2 | f->x << 1 | f->base);
		if (map)
			out[n++] = 0x0f;
		if (map == 2)
			out[n++] = 0x38;
		if (map == 3)
			out[n++] = 0x3a;
		break;
	case ENCODING_VEX:
		if (f->short_vex && map == 1 && !f->w && !f->x && !f->base) {
			out[n++] = 0xc5;
			out[n++] = (uint8_t)(!f->r << 7 | vvvv << 3 | (f->l & 1) << 2 | f->prefix);
			break;
		}
		/* fall through */
	case ENCODING_XOP:
		out[n++] = encoding == ENCODING_XOP ? 0x8f : 0xc4;
		out[n++] = (uint8_t)(!f->r << 7 | !f->x << 6 | !f->base << 5 | map);
		out[n++] = (uint8_t)(f->w << 7 | vvvv << 3 | (f->l & 1) << 2 | f->prefix);
		break;
	case ENCODING_EVEX:
		out[n++] = 0x62;
		out[n++] = (uint8_t)(!f->r << 7 | !f->x << 6 | !f->base << 5 | !f->r2 << 4 | map);
		out[n++] = (uint8_t)(f->w << 7 | vvvv << 3 | 4 | f->prefix);
		out[n++] = (uint8_t)(f->z << 7 | f->l << 5 | f->b << 4 | !f->v2 << 3 | f->aaa);
		break;
	}
	out[n++] = opcode;
	if (modrm) {
		bool wide = mode == 64 || ((mode == 32) !=
		                           (f->address_size || (encoding == ENCODING_LEGACY && f->prefix & PREFIX_67)));

		out[n++] = (uint8_t)(f->mod << 6 | f->reg << 3 | f->rm);
		if (f->mod != 3 && f->rm == 4 && wide)
			out[n++] = f->sib;
	}
	return n;
}

static const uint8_t segment_bytes[6] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
static const uint8_t junk_bytes[11] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf2, 0xf3, 0x66};

static uint8_t pick_value(struct random *random, uint8_t values)
{
	unsigned chosen = random_below(random, (uint32_t)__builtin_popcount(values));

	while (chosen--)
		values &= (uint8_t)(values - 1);
	return (uint8_t)__builtin_ctz(values);
}

static void fields_randomize(const struct isa_form *form, struct random *random, struct fields *f)
{
	uint64_t bits = random_u64(random);

	*f = (struct fields){.prefix = form->prefix, .b = form->bit_b, .z = form->zeroing};
	f->w = pick_value(random, form->w_values);
	f->l = pick_value(random, form->l_values);
	f->reg = form->has_modrm ? pick_value(random, form->reg_values) : 0;
	f->aaa = form->masked ? (uint8_t)(1 + random_below(random, 7)) : 0;
	if (form->mode == 64) {
		f->r = bits & 1;
		f->x = bits >> 1 & 1;
		f->base = bits >> 2 & 1;
		f->r2 = bits >> 3 & 1;
		f->v2 = bits >> 4 & 1;
		f->rex = (bits >> 5 & 3) == 0;
	}
	f->short_vex = bits >> 7 & 1;
	if (form->uses_vvvv)
		f->vvvv = bits >> 8 & (form->mode == 64 ? 15 : 7);
	else if (!form->vsib)
		f->v2 = 0;
	f->sib = (uint8_t)(bits >> 16);
	f->shuffle = bits >> 24 & 7;
	if (form->memory) {
		f->mod = (uint8_t)random_below(random, 3);
		f->rm = form->vsib ? 4 : bits >> 28 & 7;
	} else {
		f->mod = 3;
		f->rm = form->has_modrm ? pick_value(random, form->rm_values) : 0;
	}
	if (random_percent(random, form->memory ? 12 : 2) && !(form->prefix & PREFIX_67))
		f->address_size =
		    !(form->vsib && form->mode == 32) && !(form->has_modrm && form->vsib && form->mode == 16);
	if (random_percent(random, form->memory ? 15 : 2))
		f->segment = segment_bytes[random_below(random, 6)];
	if (random_percent(random, 3))
		f->junk = junk_bytes[random_below(random, 11)];
}

bool isa_form_encode(const struct isa_form *form, struct random *random, uint8_t bytes[15], struct isa_decoded *decoded)
{
	uint8_t buffer[40];
	struct fields f;

	fields_randomize(form, random, &f);
	uint8_t opcode = form->opcode;
	if (form->opcode_register)
		opcode = (uint8_t)((opcode & 0xf8) | random_below(random, 8));
	unsigned n = assemble(form->mode, form->encoding, form->map, opcode, form->has_modrm, &f, buffer);
	random_bytes(random, buffer + n, 16);
	memcpy(bytes, buffer, 15);
	return isa_decode(form->mode, bytes, 15, decoded) && isa_form_key(form->mode, decoded) == form->key;
}

/* ---- names ---- */

static const char *register_text(const ZydisDecodedOperand *operand, char buffer[16])
{
	if (operand->encoding == ZYDIS_OPERAND_ENCODING_NONE)
		return ZydisRegisterGetString(operand->reg.value);
	switch (ZydisRegisterGetClass(operand->reg.value)) {
	case ZYDIS_REGCLASS_X87:
		return "st";
	case ZYDIS_REGCLASS_MMX:
		return "mm";
	case ZYDIS_REGCLASS_XMM:
		return "xmm";
	case ZYDIS_REGCLASS_YMM:
		return "ymm";
	case ZYDIS_REGCLASS_ZMM:
		return "zmm";
	case ZYDIS_REGCLASS_MASK:
		return "k";
	case ZYDIS_REGCLASS_SEGMENT:
		return "sreg";
	case ZYDIS_REGCLASS_CONTROL:
		return "cr";
	case ZYDIS_REGCLASS_DEBUG:
		return "dr";
	default:
		snprintf(buffer, 16, "r%u", operand->size);
		return buffer;
	}
}

static void name_operand(const ZydisDecodedOperand *operand, char *text, size_t size)
{
	char buffer[16];

	switch (operand->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		snprintf(text, size, "%s", register_text(operand, buffer));
		break;
	case ZYDIS_OPERAND_TYPE_MEMORY:
		if (operand->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
			snprintf(text, size, "vm%u%s", operand->element_size,
			         ZydisRegisterGetClass(operand->mem.index) == ZYDIS_REGCLASS_XMM   ? "x"
			         : ZydisRegisterGetClass(operand->mem.index) == ZYDIS_REGCLASS_YMM ? "y"
			                                                                           : "z");
		else
			snprintf(text, size, "m%u", operand->size);
		break;
	case ZYDIS_OPERAND_TYPE_POINTER:
		snprintf(text, size, "ptr%u", operand->size);
		break;
	default:
		if (operand->imm.is_relative)
			snprintf(text, size, "rel%u", operand->size);
		else if (operand->encoding == ZYDIS_OPERAND_ENCODING_NONE)
			snprintf(text, size, "%u", (unsigned)operand->imm.value.u);
		else
			snprintf(text, size, "imm%u", operand->size);
	}
}

static void form_name(struct isa_form *form, const struct isa_decoded *decoded)
{
	static const char *const encodings[] = {"", "vex.", "xop.", "evex."};
	const ZydisDecodedInstruction *i = &decoded->instruction;
	char text[sizeof(form->name) + 40];
	int n = snprintf(text, sizeof(text), "%s%s%s",
	                 form->mode == 64   ? ""
	                 : form->mode == 32 ? "32: "
	                                    : "16: ",
	                 i->attributes & ZYDIS_ATTRIB_HAS_LOCK                            ? "lock "
	                 : i->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE) ? "rep "
	                 : i->attributes & ZYDIS_ATTRIB_HAS_REPNE                         ? "repne "
	                                                                                  : "",
	                 ZydisMnemonicGetString(i->mnemonic));

	for (unsigned k = 0; k < i->operand_count_visible && n < 64; k++) {
		char operand[24];

		if (decoded->operand[k].encoding == ZYDIS_OPERAND_ENCODING_MASK)
			continue;
		name_operand(&decoded->operand[k], operand, sizeof(operand));
		n += snprintf(text + n, sizeof(text) - (size_t)n, "%s%s", k ? "," : " ", operand);
	}
	snprintf(text + n, sizeof(text) - (size_t)n, "%s%s%s%s%s %s%s%02x%s", form->masked ? "{k}" : "",
	         form->zeroing ? "{z}" : "", i->avx.broadcast.mode && !i->avx.broadcast.is_static ? "{bcst}" : "",
	         i->avx.rounding.mode ? "{er}" : "", i->avx.has_sae && !i->avx.rounding.mode ? "{sae}" : "",
	         encodings[form->encoding],
	         form->encoding == ENCODING_LEGACY
	             ? (const char *[]){"", "0f.", "0f38.", "0f3a."}[form->map]
	             : (const char *[]){"0.", "1.", "2.", "3.", "4.", "5.", "6.", "7.", "8.", "9.", "a."}[form->map],
	         form->opcode, form->opcode_register ? "+r" : "");
	text[sizeof(form->name) - 1] = 0;
	memcpy(form->name, text, sizeof(form->name));
}

/* ---- enumeration ---- */

static unsigned hash_slot(const struct isa_forms *forms, uint64_t key)
{
	unsigned slot = (unsigned)key & (forms->slots - 1);

	while (forms->slot[slot] && forms->form[forms->slot[slot] - 1].key != key)
		slot = (slot + 1) & (forms->slots - 1);
	return slot;
}

struct isa_form *isa_forms_find(struct isa_forms *forms, uint64_t key)
{
	unsigned at = forms->slot[hash_slot(forms, key)];

	return at ? &forms->form[at - 1] : NULL;
}

/* What is being tried. */
struct trial {
	struct isa_forms *forms;
	unsigned mode, map;
	enum isa_encoding encoding;
	uint8_t opcode;
	struct fields f;
	struct isa_decoded decoded;
};

static int form_add(struct trial *t, uint64_t key, unsigned slot)
{
	struct isa_forms *forms = t->forms;

	if (forms->count == forms->capacity || forms->count * 2 > forms->slots)
		return -ENOMEM;
	struct isa_form *form = &forms->form[forms->count++];
	const ZydisDecodedInstruction *i = &t->decoded.instruction;

	*form = (struct isa_form){
	    .key = key,
	    .mode = (uint8_t)t->mode,
	    .encoding = (uint8_t)t->encoding,
	    .map = (uint8_t)t->map,
	    .opcode = t->opcode,
	    .prefix = t->f.prefix,
	    .memory = t->f.mod != 3,
	    .has_modrm = i->attributes & ZYDIS_ATTRIB_HAS_MODRM,
	    .masked = t->f.aaa != 0,
	    .zeroing = t->f.z,
	    .bit_b = t->f.b,
	    .mnemonic = i->mnemonic,
	};
	form->memory = form->memory && form->has_modrm;
	for (unsigned n = 0; n < i->operand_count; n++) {
		const ZydisDecodedOperand *operand = &t->decoded.operand[n];

		form->opcode_register |= operand->encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
		form->uses_vvvv |= operand->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD;
		form->vsib |= operand->type == ZYDIS_OPERAND_TYPE_MEMORY && operand->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
	}
	if (form->opcode_register)
		form->opcode &= 0xf8;
	form->skip = isa_skip_reason(t->mode, &t->decoded);
	form_name(form, &t->decoded);
	forms->slot[slot] = forms->count;
	return 0;
}

/* Decodes one encoding and enters it. 1: it is an instruction with ModRM, 2: without. 0: none. */
static int try_encoding(struct trial *t)
{
	uint8_t bytes[40] = {0};

	assemble(t->mode, t->encoding, t->map, t->opcode, true, &t->f, bytes);
	if (!isa_decode(t->mode, bytes, 15, &t->decoded))
		return 0;
	uint64_t key = isa_form_key(t->mode, &t->decoded);
	unsigned slot = hash_slot(t->forms, key);

	if (!t->forms->slot[slot]) {
		int error = form_add(t, key, slot);

		if (error)
			return error;
	}
	struct isa_form *form = &t->forms->form[t->forms->slot[slot] - 1];
	/* Another opcode or prefix for the same form is not mixed with the first one found. */
	if (form->prefix == t->f.prefix && form->masked == (t->f.aaa != 0) && form->zeroing == t->f.z &&
	    form->bit_b == t->f.b && form->encoding == t->encoding) {
		form->reg_values |= (uint8_t)(1u << t->f.reg);
		form->rm_values |= (uint8_t)(1u << t->f.rm);
		form->w_values |= (uint8_t)(1u << t->f.w);
		form->l_values |= (uint8_t)(1u << t->f.l);
	}
	return t->decoded.instruction.attributes & ZYDIS_ATTRIB_HAS_MODRM ? 1 : 2;
}

/* All ModRM bytes that matter: every reg field; one memory form; all rm fields where they are an opcode. */
static int try_modrm(struct trial *t, bool all_reg, bool all_rm)
{
	int error = 0;

	for (unsigned memory = 0; memory < 2; memory++) {
		t->f.mod = memory ? 2 : 3;
		t->f.sib = 0x88; /* [rax + rcx*4 + disp32] */
		for (unsigned reg = 0; reg < 8 && error >= 0; reg++) {
			if (!all_reg && reg != 3)
				continue;
			for (unsigned rm = 0; rm < 8 && error >= 0; rm++) {
				if (memory ? rm != 4 : !all_rm && rm != 2)
					continue;
				t->f.reg = (uint8_t)reg;
				t->f.rm = (uint8_t)rm;
				error = try_encoding(t);
				if (error == 2)
					return 0;
			}
		}
	}
	return error < 0 ? error : 0;
}

static bool is_prefix(unsigned mode, unsigned map, unsigned opcode)
{
	if (map)
		return map == 1 && (opcode == 0x38 || opcode == 0x3a || opcode == 0x0f);
	switch (opcode) {
	case 0x26:
	case 0x2e:
	case 0x36:
	case 0x3e:
	case 0x64:
	case 0x65:
	case 0x66:
	case 0x67:
	case 0xf0:
	case 0xf2:
	case 0xf3:
	case 0x0f:
		return true;
	default:
		return mode == 64 && opcode >= 0x40 && opcode <= 0x4f;
	}
}

static int enumerate_legacy(struct trial *t)
{
	static const uint8_t prefixes[] = {
	    0,
	    PREFIX_66,
	    PREFIX_F2,
	    PREFIX_F3,
	    PREFIX_66 | PREFIX_F2,
	    PREFIX_66 | PREFIX_F3,
	    PREFIX_LOCK,
	    PREFIX_LOCK | PREFIX_66,
	    PREFIX_67,
	    PREFIX_67 | PREFIX_66,
	};

	t->encoding = ENCODING_LEGACY;
	for (unsigned p = 0; p < sizeof(prefixes); p++)
		for (unsigned opcode = 0; opcode < 256; opcode++)
			for (t->map = 0; t->map < 4; t->map++) {
				if (is_prefix(t->mode, t->map, opcode))
					continue;
				bool jcxz = !t->map && opcode >= 0xe0 && opcode <= 0xe3;
				if (prefixes[p] & PREFIX_67 && !jcxz)
					continue;
				for (unsigned w = 0; w < (t->mode == 64 ? 2 : 1); w++) {
					t->opcode = (uint8_t)opcode;
					t->f = (struct fields){.prefix = prefixes[p], .w = (uint8_t)w};
					bool x87 = !t->map && opcode >= 0xd8 && opcode <= 0xdf;
					int error = try_modrm(t, true, x87 || t->map == 1);
					if (error < 0)
						return error;
				}
			}
	return 0;
}

static int enumerate_vex(struct trial *t, bool xop)
{
	t->encoding = xop ? ENCODING_XOP : ENCODING_VEX;
	for (t->map = xop ? 8 : 1; t->map <= (xop ? 10 : 3); t->map++)
		for (unsigned n = 0; n < 256 * 16; n++) {
			t->opcode = (uint8_t)(n >> 4);
			t->f = (struct fields){.prefix = n & 3, .w = n >> 2 & 1, .l = n >> 3 & 1};
			if (t->mode != 64 && xop)
				continue;
			int error = try_modrm(t, true, false);
			if (error < 0)
				return error;
		}
	return 0;
}

static int enumerate_evex(struct trial *t)
{
	t->encoding = ENCODING_EVEX;
	for (t->map = 1; t->map <= 6; t->map++)
		for (unsigned n = 0; n < 256u * 64 * 4 && t->map != 4; n++) {
			t->opcode = (uint8_t)(n >> 8);
			t->f = (struct fields){.prefix = n & 3,
			                       .w = n >> 2 & 1,
			                       .l = n >> 3 & 3,
			                       .b = n >> 5 & 1,
			                       .aaa = n >> 6 & 1,
			                       .z = n >> 7 & 1};
			if (t->f.z && !t->f.aaa)
				continue;
			bool group = (t->map == 1 && t->opcode >= 0x71 && t->opcode <= 0x73) ||
			             (t->map == 2 && (t->opcode == 0xc6 || t->opcode == 0xc7));
			int error = try_modrm(t, group, false);
			if (error < 0)
				return error;
		}
	return 0;
}

int isa_forms_create(struct isa_forms *forms)
{
	struct trial t = {.forms = forms};
	int error = 0;

	*forms = (struct isa_forms){.capacity = 1u << 15, .slots = 1u << 16};
	forms->form = calloc(forms->capacity, sizeof(*forms->form));
	forms->slot = calloc(forms->slots, sizeof(*forms->slot));
	if (!forms->form || !forms->slot)
		error = -ENOMEM;
	for (t.mode = 64; t.mode >= 16 && !error; t.mode /= 2) {
		error = enumerate_legacy(&t);
		if (!error && t.mode > 16)
			error = enumerate_vex(&t, false);
		if (!error && t.mode == 64)
			error = enumerate_vex(&t, true);
		if (!error && t.mode == 64)
			error = enumerate_evex(&t);
	}
	if (error)
		isa_forms_destroy(forms);
	return error;
}

void isa_forms_destroy(struct isa_forms *forms)
{
	free(forms->form);
	free(forms->slot);
	*forms = (struct isa_forms){0};
}
