// A browser's calls with supabase-js: lists projects, creates one, and tries to change another tenant's. Prints JSON for
// test_newcomer.py.
import { createClient } from "@supabase/supabase-js";

const { SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY, TOKEN, OWN_ORGANIZATION, OTHER_ORGANIZATION } = process.env;
const supabase = createClient(SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY, {
  accessToken: async () => TOKEN,
  realtime: { transport: globalThis.WebSocket ?? class {} }, // Node 20 has no WebSocket, and this program opens none
});

const session = await supabase.rpc("start_session");
const listed = await supabase.from("projects").select("*, organization:organizations(name)").order("created_at", { ascending: false });
const created = await supabase.from("projects").insert({ organization_id: OWN_ORGANIZATION, title: "From supabase-js" }).select().single();
const foreign = await supabase.from("projects").insert({ organization_id: OTHER_ORGANIZATION, title: "Not mine" }).select();
const others = await supabase.from("projects").update({ title: "Taken" }).eq("organization_id", OTHER_ORGANIZATION).select();
const gone = await supabase.from("projects").delete().eq("id", created.data?.id).select();

console.log(JSON.stringify({ session, listed, created, foreign, others, gone }));
