/*
 * IN and OUT. They end their block, so that what a chip asks for (reset, power off, an interrupt) is seen at once.
 */
#include "engines/interpreter/decode.h"
#include "x86/segments.h"

static void go_on(PARAMETERS)
{
	COUNT_BLOCK;
	FOLLOW(&block_of(insn)->link[NOT_TAKEN],
	       (vcpu->state.rip + insn->offset + insn->scale) & interpreter_of(vcpu)->rip_mask);
}

/* a: operand size; b: DX instead of the constant in `displacement`. */
static uint16_t port_of(struct vcpu *vcpu, const struct insn *insn)
{
	uint16_t port = insn->b ? (uint16_t)vcpu->state.gpr[RDX] : (uint16_t)insn->displacement;

	x86_check_io(vcpu, port, insn->a);
	return port;
}

static void in(PARAMETERS)
{
	SLOW_ENTER;
	uint32_t value = vcpu_port_read(vcpu, port_of(vcpu, insn), insn->a);
	if (insn->a == 1)
		write8(vcpu, GPR_OFFSET(RAX), (uint8_t)value);
	else if (insn->a == 2)
		write16(vcpu, GPR_OFFSET(RAX), (uint16_t)value);
	else
		write32(vcpu, GPR_OFFSET(RAX), value);
	return go_on(ARGUMENTS);
}

static void out(PARAMETERS)
{
	static const uint32_t masks[5] = {0, 0xff, 0xffff, 0, 0xffffffff};

	SLOW_ENTER;
	vcpu_port_write(vcpu, port_of(vcpu, insn), insn->a, (uint32_t)vcpu->state.gpr[RAX] & masks[insn->a]);
	return go_on(ARGUMENTS);
}

bool io_decode(struct decoder *d)
{
	bool is_in = d->instruction.mnemonic == ZYDIS_MNEMONIC_IN;
	const ZydisDecodedOperand *port = &d->operand[is_in ? 1 : 0], *data = &d->operand[is_in ? 0 : 1];
	struct insn *insn;

	if (!is_in && d->instruction.mnemonic != ZYDIS_MNEMONIC_OUT)
		return false;
	insn = emit_terminal(d, is_in ? in : out);
	insn->a = (uint8_t)(data->size / 8);
	insn->b = is_register(port);
	if (!insn->b)
		insn->displacement = (int32_t)(port->imm.value.u & 0xff);
	return true;
}
