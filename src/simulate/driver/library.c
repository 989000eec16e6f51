/*
 * A stand-in for libnvidia-ml.so.1 that tells what a text file says.
 *
 * The file is `state` in the directory this library lies in; where there is none, the file that the
 * environment variable BERTHD_FAKE_NVML names. Change the "hardware" by replacing the file with a rename: a
 * call may read at any time. It is parsed once for each change. What a line leaves out is answered "not
 * supported" (3). Values with spaces stand in double quotes; `#` begins a comment line.
 *
 * The system:
 *   driver=580.65.06  nvml=13.580.65.06  cuda=13.0      (one line each)
 *   count=2                       number of GPUs; otherwise the `gpu` lines are counted
 *
 * A GPU, one line:
 *   gpu N uuid= name= serial= pci=00000000:01:00.0 vbios= compute=9.0 minor= KEY=NUMBER ...
 *       The keys are in state.h (NUMBERS): memory in bytes, power in milliwatts, energy in millijoules,
 *       temperatures in degrees Celsius, clocks in MHz, shares in percent. 0x begins a hexadecimal number.
 *       energy=auto  integrates power_mw over real time from the loading of this library, on top of
 *                    energy_mj; another energy_epoch= begins again at nothing.
 *       mig=1        MIG is on: device-wide shares are not supported then, as with the real library.
 *   link N I active=1 version= remote=PCI crc_errors= replay_errors= recovery_errors= ecc_errors= tx_kib=
 *       rx_kib= speed_mbps=       NVLink I of GPU N
 *   mig N I uuid=MIG-... name= gi= ci= mem_total= mem_used= mem_free= bar1_total= bar1_used= sm_count=
 *       slices= ci_slices= copy_engines= decoders= encoders= jpegs= ofas=      MIG device I of GPU N
 *   proc N pid= mem=B kind=compute|graphics|mps name= gi= ci= sm= mem_util= enc= dec=
 *       Without mem, the driver does not know it. With sm, it has a sample of its utilisation.
 *   no_processes N                GPU N cannot list processes
 *
 * Events:
 *   event SEQ gpu=N|none type=T data=D gi= ci=
 *       T is sbe dbe pstate xid clock power mig storm retired retire_failed nonfatal poison unavailable
 *       recovery or other:0xBITS. SEQ grows down the file's life. Each set that registered the type for the GPU
 *       before the line appeared gets it once, in the order of SEQ.
 *   lost_events                   waiting for events answers 15
 *
 * Faults. CALL is a function's name or `*`; with @N the line is for GPU N only:
 *   return CALL[@N]=CODE          that call answers with this code
 *   slow CALL[@N]=2ms             that call takes so much longer (us, ms, s; ms if unnamed)
 *   hang CALL[@N]=5000ms          that call takes so long, or until the line is gone; meanwhile a file
 *                                 `hanging` lies beside the library
 *   lost N                        every call about GPU N answers 15
 *   unloaded                      every call answers 9, nvmlInit too
 *   mismatch                      every call answers 18, nvmlInit too
 *   log_calls                     each call adds its name, with @N if it is about GPU N, as a line to the file
 *                                 `calls` beside the library
 *
 * Built with -DOLD_DRIVER it lacks the calls that came after driver 470.
 *
 * It is one unit: the files below have one subject each and share their static parts.
 */
#define _GNU_SOURCE
#include "types.h"
#include "state.h"

#include "parse.c"
#include "read.c"
#include "visit.c"
#include "system.c"
#include "device.c"
#include "power.c"
#include "health.c"
#include "links.c"
#include "fields.c"
#include "processes.c"
#include "mig.c"
#include "events.c"
