import { assertEquals, assertThrows } from "@std/assert";
import {
  DEFAULT_STORE_PORT,
  rankIdentity,
} from "../../lib/cluster/identity.ts";

type Env = Readonly<Record<string, string>>;

function read(env: Env): ReturnType<typeof rankIdentity> {
  return rankIdentity((name) => env[name]);
}

function refuses(env: Env, message: string): void {
  assertThrows(() => read(env), RangeError, message);
}

const EPLB: Env = {
  EPLB_RANK: "1",
  EPLB_WORLD_SIZE: "4",
  EPLB_LOCAL_RANK: "0",
  EPLB_STORE: "node0:4000",
  EPLB_TOKEN: "secret",
};
const TORCHRUN: Env = {
  RANK: "5",
  WORLD_SIZE: "8",
  LOCAL_RANK: "1",
  MASTER_ADDR: "10.0.0.1",
  MASTER_PORT: "29500",
  TORCHELASTIC_RUN_ID: "run7",
};
const SLURM: Env = {
  SLURM_PROCID: "2",
  SLURM_NTASKS: "16",
  SLURM_LOCALID: "2",
  SLURM_JOB_ID: "991",
  SLURM_JOB_NODELIST: "gpu[03-05,7]",
};
const OPENMPI: Env = {
  OMPI_COMM_WORLD_RANK: "3",
  OMPI_COMM_WORLD_SIZE: "4",
  OMPI_COMM_WORLD_LOCAL_RANK: "3",
  OMPI_COMM_WORLD_LOCAL_SIZE: "4",
  PMIX_NAMESPACE: "prterun-a-17@1",
};

Deno.test("rankIdentity() is undefined where no launcher is at work", () => {
  assertEquals(read({}), undefined);
  assertEquals(read({ RANK: "", HOME: "/root" }), undefined);
  // A shell inside an allocation, before srun.
  assertEquals(read({ SLURM_NTASKS: "8", SLURM_JOB_ID: "1" }), undefined);
});

Deno.test("rankIdentity() reads this project's own variables", () => {
  assertEquals(read(EPLB), {
    rank: 1,
    worldSize: 4,
    localRank: 0,
    storeHost: "node0",
    storePort: 4000,
    token: "secret",
    source: "eplb",
  });
});

Deno.test("rankIdentity() reads torchrun's variables, one port above its store", () => {
  assertEquals(read(TORCHRUN), {
    rank: 5,
    worldSize: 8,
    localRank: 1,
    storeHost: "10.0.0.1",
    storePort: 29501,
    token: "torchrun run7",
    source: "torchrun",
  });
});

Deno.test("rankIdentity() reads Slurm's variables", () => {
  assertEquals(read(SLURM), {
    rank: 2,
    worldSize: 16,
    localRank: 2,
    storeHost: "gpu03",
    storePort: DEFAULT_STORE_PORT,
    token: "slurm 991",
    source: "slurm",
  });
});

Deno.test("rankIdentity() reads Open MPI's variables", () => {
  assertEquals(read(OPENMPI), {
    rank: 3,
    worldSize: 4,
    localRank: 3,
    storeHost: "127.0.0.1",
    storePort: DEFAULT_STORE_PORT,
    token: "openmpi prterun-a-17@1",
    source: "openmpi",
  });
});

Deno.test("rankIdentity() takes the inner launcher", () => {
  assertEquals(read({ ...TORCHRUN, ...EPLB })?.source, "eplb");
  assertEquals(read({ ...SLURM, ...TORCHRUN })?.source, "torchrun");
  // mpirun inside a Slurm job: SLURM_PROCID counts its daemons.
  assertEquals(read({ ...SLURM, ...OPENMPI })?.rank, 3);
});

Deno.test("rankIdentity() lets EPLB_STORE, EPLB_STORE_PORT and EPLB_TOKEN override", () => {
  const { EPLB_STORE, EPLB_TOKEN } = EPLB as { [name: string]: string };
  const store = read({
    ...SLURM,
    EPLB_STORE: EPLB_STORE!,
    EPLB_TOKEN: EPLB_TOKEN!,
  });
  assertEquals(store?.storeHost, "node0");
  assertEquals(store?.storePort, 4000);
  assertEquals(store?.token, "secret");
  const port = read({ ...TORCHRUN, EPLB_STORE_PORT: "4001" });
  assertEquals(port?.storeHost, "10.0.0.1");
  assertEquals(port?.storePort, 4001);
  const ipv6 = read({ ...EPLB, EPLB_STORE: "[fd00::1]:4002" });
  assertEquals(ipv6?.storeHost, "fd00::1");
  assertEquals(ipv6?.storePort, 4002);
});

Deno.test("rankIdentity() takes the first host of a Slurm list", () => {
  const hosts = {
    "gpu7": "gpu7",
    "gpu7,gpu8": "gpu7",
    "gpu[03-05,7]": "gpu03",
    "gpu[7,03-05],cpu[1-2]": "gpu7",
    "rack[2-3]n[10-11]-ib": "rack2n10-ib",
    "a.example.org,b.example.org": "a.example.org",
  };
  for (const [list, host] of Object.entries(hosts)) {
    const step = read({ ...SLURM, SLURM_STEP_NODELIST: list });
    assertEquals(step?.storeHost, host, list);
  }
  const { SLURM_JOB_NODELIST: _, ...nowhere } = SLURM;
  const launch = read({ ...nowhere, SLURM_LAUNCH_NODE_IPADDR: "10.1.1.1" });
  assertEquals(launch?.storeHost, "10.1.1.1");
  assertEquals(read({ ...SLURM, MASTER_ADDR: "m" })?.storeHost, "m");
  for (const list of ["[1-2]x y", "gpu[", ",gpu1", "]"]) {
    refuses({ ...SLURM, SLURM_STEP_NODELIST: list }, "SLURM_STEP_NODELIST");
  }
});

Deno.test("rankIdentity() names the variable that is not set", () => {
  for (const env of [EPLB, TORCHRUN, SLURM, OPENMPI]) {
    const needed = Object.keys(env).filter((name) =>
      !/MASTER_PORT|RUN_ID|JOB_ID|NAMESPACE|NODELIST|LOCAL_SIZE/.test(name)
    );
    // Without its rank, Slurm's or Open MPI's job is none.
    for (const name of needed.slice(1)) {
      const { [name]: _, ...rest } = env;
      refuses(rest, `${name} is not set`);
    }
  }
  const { EPLB_RANK: _, ...half } = EPLB;
  refuses(half, 'EPLB_WORLD_SIZE is "4" but EPLB_RANK is not set');
  const { RANK: __, ...torch } = TORCHRUN;
  refuses(torch, 'WORLD_SIZE is "8" but RANK is not set');
  refuses({ ...OPENMPI, OMPI_COMM_WORLD_LOCAL_SIZE: "2" }, "MASTER_ADDR");
  const { SLURM_JOB_NODELIST: ___, ...nowhere } = SLURM;
  refuses(nowhere, "MASTER_ADDR is not set");
});

Deno.test("rankIdentity() names the variable and the value that cannot be", () => {
  refuses(
    { ...EPLB, EPLB_RANK: "one" },
    'EPLB_RANK must be an integer >= 0: current value is "one"',
  );
  refuses({ ...EPLB, EPLB_RANK: "-1" }, 'current value is "-1"');
  refuses(
    { ...EPLB, EPLB_WORLD_SIZE: "0" },
    'EPLB_WORLD_SIZE must be an integer >= 1: current value is "0"',
  );
  refuses(
    { ...TORCHRUN, RANK: "8" },
    "RANK is 8 and LOCAL_RANK is 1 but WORLD_SIZE is 8",
  );
  refuses(
    { ...TORCHRUN, LOCAL_RANK: "9" },
    "LOCAL_RANK is 9 but WORLD_SIZE is 8",
  );
  refuses(
    { ...TORCHRUN, MASTER_PORT: "http" },
    'MASTER_PORT must hold a port from 1 to 65535: current value is "http"',
  );
  refuses({ ...TORCHRUN, MASTER_PORT: "65535" }, "MASTER_PORT is 65535");
  refuses(
    { ...TORCHRUN, EPLB_STORE_PORT: "0" },
    'EPLB_STORE_PORT must hold a port from 1 to 65535: current value is "0"',
  );
  refuses(
    { ...EPLB, EPLB_STORE: "node0" },
    'EPLB_STORE must be "host:port": current value is "node0"',
  );
  refuses({ ...EPLB, EPLB_STORE: "node0:70000" }, 'current value is "70000"');
});
