/* Register and code dump of a vCPU that stands, for crash reports. */
#pragma once

#include <stdio.h>

struct vcpu;

void dump_vcpu(struct vcpu *vcpu, FILE *file);
