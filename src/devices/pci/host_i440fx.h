/*
 * The host bridge of the Intel 440FX (8086:1237; Intel 290549): its configuration space. PAM and SMRAM registers are
 * stored; the machine's RAM lies under the BIOS area anyway.
 */
#pragma once

#include "devices/pci/pci.h"

struct host_i440fx {
	struct pci_function function;
};

/* Plugs it in at slot 0. 0 or -errno. */
int host_i440fx_init(struct host_i440fx *host, struct pci_root *root);
void host_i440fx_reset(struct host_i440fx *host);
/* No state beside its configuration space, which pci_root_state() saves. */
