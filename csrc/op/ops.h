// The arguments of each op's kernels, after the door has checked them.
#pragma once

#include "op/coupling.h"
