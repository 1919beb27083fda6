/*
 * Which instruction sets may be executed: those that both the guest's CPUID and the host's announce. All others are
 * #UD, before their operand is looked at.
 */
#include "engines/interpreter/native_private.h"

#include <cpuid.h>
#include <string.h>

#include "x86/system.h"

enum { EAX_REGISTER, EBX_REGISTER, ECX_REGISTER, EDX_REGISTER };

/* Names as the decoder has them; one that ends in _ stands for all vector lengths. What is not here, every x86-64 has.
 */
static const struct {
	const char *name;
	uint32_t leaf, subleaf;
	uint8_t reg, bit;
} features[] = {
    {"SSE3", 1, 0, ECX_REGISTER, 0},
    {"SSE3X87", 1, 0, ECX_REGISTER, 0},
    {"PCLMULQDQ", 1, 0, ECX_REGISTER, 1},
    {"SSSE3", 1, 0, ECX_REGISTER, 9},
    {"SSSE3MMX", 1, 0, ECX_REGISTER, 9},
    {"FMA", 1, 0, ECX_REGISTER, 12},
    {"CMPXCHG16B", 1, 0, ECX_REGISTER, 13},
    {"SSE4", 1, 0, ECX_REGISTER, 19},
    {"SSE42", 1, 0, ECX_REGISTER, 20},
    {"MOVBE", 1, 0, ECX_REGISTER, 22},
    {"POPCNT", 1, 0, ECX_REGISTER, 23},
    {"AES", 1, 0, ECX_REGISTER, 25},
    {"AVXAES", 1, 0, ECX_REGISTER, 25},
    {"XSAVE", 1, 0, ECX_REGISTER, 26},
    {"AVX", 1, 0, ECX_REGISTER, 28},
    {"F16C", 1, 0, ECX_REGISTER, 29},
    {"RDRAND", 1, 0, ECX_REGISTER, 30},
    {"BMI1", 7, 0, EBX_REGISTER, 3},
    {"AVX2", 7, 0, EBX_REGISTER, 5},
    {"AVX2GATHER", 7, 0, EBX_REGISTER, 5},
    {"BMI2", 7, 0, EBX_REGISTER, 8},
    {"AVX512F_", 7, 0, EBX_REGISTER, 16},
    {"AVX512DQ_", 7, 0, EBX_REGISTER, 17},
    {"RDSEED", 7, 0, EBX_REGISTER, 18},
    {"ADOX_ADCX", 7, 0, EBX_REGISTER, 19},
    {"AVX512_IFMA_", 7, 0, EBX_REGISTER, 21},
    {"AVX512PF_", 7, 0, EBX_REGISTER, 26},
    {"AVX512ER_", 7, 0, EBX_REGISTER, 27},
    {"AVX512CD_", 7, 0, EBX_REGISTER, 28},
    {"SHA", 7, 0, EBX_REGISTER, 29},
    {"AVX512BW_", 7, 0, EBX_REGISTER, 30},
    {"AVX512_VBMI_", 7, 0, ECX_REGISTER, 1},
    {"AVX512_VBMI2_", 7, 0, ECX_REGISTER, 6},
    {"GFNI", 7, 0, ECX_REGISTER, 8},
    {"AVX_GFNI", 7, 0, ECX_REGISTER, 8},
    {"AVX512_GFNI_", 7, 0, ECX_REGISTER, 8},
    {"VAES", 7, 0, ECX_REGISTER, 9},
    {"AVX512_VAES_", 7, 0, ECX_REGISTER, 9},
    {"VPCLMULQDQ", 7, 0, ECX_REGISTER, 10},
    {"AVX512_VPCLMULQDQ_", 7, 0, ECX_REGISTER, 10},
    {"AVX512_VNNI_", 7, 0, ECX_REGISTER, 11},
    {"AVX512_BITALG_", 7, 0, ECX_REGISTER, 12},
    {"AVX512_VPOPCNTDQ_", 7, 0, ECX_REGISTER, 14},
    {"AVX512_VP2INTERSECT_", 7, 0, EDX_REGISTER, 8},
    {"AVX512_FP16_", 7, 0, EDX_REGISTER, 23},
    {"AVX_VNNI", 7, 1, EAX_REGISTER, 4},
    {"AVX512_BF16_", 7, 1, EAX_REGISTER, 5},
    {"XSAVEOPT", 0xd, 1, EAX_REGISTER, 0},
    {"XSAVEC", 0xd, 1, EAX_REGISTER, 1},
    {"XSAVES", 0xd, 1, EAX_REGISTER, 3},
    {"SSE4A", 0x80000001, 0, ECX_REGISTER, 6},
};

static bool host_has(uint32_t leaf, uint32_t subleaf, unsigned reg, unsigned bit)
{
	uint32_t r[4];
	if (!__get_cpuid_count(leaf, subleaf, &r[0], &r[1], &r[2], &r[3]))
		return false;
	return r[reg] >> bit & 1;
}

static bool guest_has(const struct cpu_model *model, uint32_t leaf, uint32_t subleaf, unsigned reg, unsigned bit)
{
	if (!model)
		return true;
	for (unsigned n = 0; n < model->count; n++) {
		const struct cpuid_leaf *l = &model->leaf[n];
		if (l->leaf == leaf && (!l->indexed || l->subleaf == subleaf)) {
			const uint32_t r[4] = {l->eax, l->ebx, l->ecx, l->edx};
			return r[reg] >> bit & 1;
		}
	}
	return false;
}

static bool has(const struct cpu_model *model, uint32_t leaf, uint32_t subleaf, unsigned reg, unsigned bit)
{
	return guest_has(model, leaf, subleaf, reg, bit) && host_has(leaf, subleaf, reg, bit);
}

static bool names(const char *feature, const char *isa_set)
{
	size_t length = strlen(feature);
	return feature[length - 1] == '_' ? !strncmp(feature, isa_set, length) : !strcmp(feature, isa_set);
}

static bool ends_in(const char *name, const char *end)
{
	size_t length = strlen(name), end_length = strlen(end);
	return length > end_length && !strcmp(name + length - end_length, end);
}

void native_find_features(struct native *native, const struct cpu_model *model)
{
	bool vl = has(model, 7, 0, EBX_REGISTER, 31);
	for (unsigned set = 0; set <= ZYDIS_ISA_SET_MAX_VALUE; set++) {
		const char *isa_set = ZydisISASetGetString((ZydisISASet)set);
		native->available[set] = true;
		if (!isa_set)
			continue;
		if (!strncmp(isa_set, "AVX512", 6) && (ends_in(isa_set, "_128") || ends_in(isa_set, "_256")))
			native->available[set] = vl;
		for (unsigned n = 0; n < sizeof features / sizeof *features; n++)
			if (names(features[n].name, isa_set))
				native->available[set] &=
				    has(model, features[n].leaf, features[n].subleaf, features[n].reg, features[n].bit);
	}
}
